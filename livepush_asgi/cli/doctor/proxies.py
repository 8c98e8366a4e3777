"""Proxies: what stands on the way, by the header fields that it leaves on an answer or on a request."""

import re
from dataclasses import dataclass

from .observation import Answer, Observation

# The name, the header field of the answer, and what is in it. The order is that of the report.
ON_ANSWERS = (
    ("Cloudflare", "cf-ray", ""),
    ("Cloudflare", "server", "cloudflare"),
    ("Amazon CloudFront", "x-amz-cf-id", ""),
    ("Amazon CloudFront", "via", "cloudfront"),
    ("AWS ALB", "server", "awselb"),
    ("AWS API Gateway", "x-amzn-requestid", ""),
    ("AWS API Gateway", "x-amz-apigw-id", ""),
    ("Vercel", "x-vercel-id", ""),
    ("Fly.io", "fly-request-id", ""),
    ("Heroku", "via", r"vegur|heroku"),
    ("Netlify", "x-nf-request-id", ""),
    ("Azure Front Door", "x-azure-ref", ""),
    ("Google Cloud", "via", r"\bgoogle\b"),
    ("Google Cloud", "server", "google frontend"),
    ("Fastly", "x-served-by", "cache-"),
    ("Akamai", "server", "akamai"),
    ("Varnish", "x-varnish", ""),
    ("Varnish", "via", "varnish"),
    ("Envoy", "server", r"^(istio-)?envoy"),
    ("Envoy", "x-envoy-upstream-service-time", ""),
    ("Kong", "via", "kong"),
    ("Caddy", "via", "caddy"),
    ("Caddy", "server", "^caddy"),
    ("nginx", "server", r"^(nginx|openresty|tengine)"),
    ("HAProxy", "server", "haproxy"),
    ("Apache", "server", "^apache"),
    ("Traefik", "server", "traefik"),
    ("Squid", "via", "squid"),
    ("IIS", "server", "microsoft-iis"),
    ("Next.js", "x-powered-by", r"next\.js"),
    ("Express", "x-powered-by", "express"),
)
# The same for what the application saw on the request; `via` it tells whole, of others the name.
ON_REQUESTS = (
    ("Cloudflare", r"cf-ray"),
    ("Amazon CloudFront", r"x-amz-cf-id"),
    ("AWS ALB", r"x-amzn-trace-id"),
    ("Vercel", r"x-vercel-id"),
    ("Fly.io", r"fly-.*"),
    ("Google Cloud", r"x-cloud-trace-context"),
    ("Azure", r"x-azure-.*|x-arr-.*"),
    ("Envoy", r"x-envoy-.*"),
    ("Varnish", r"x-varnish"),
)
UNKNOWN = "a proxy"
# Servers of Python applications, which name themselves in the same place.
SERVERS = re.compile(r"uvicorn|hypercorn|granian|daphne|gunicorn|livepush", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A program on the way, and by what it is known."""

    name: str
    known_by: str


def proxies_of(observation: Observation, *, vite: bool = False) -> tuple[Proxy, ...]:
    """Name what stands on the way, as far as it can be known, each once."""
    found = [*_on_answer(observation.answer), *_on_request(observation)]
    if vite:
        found.append(Proxy("Vite", "/@vite/client is there"))
    if not found and (signs := _signs(observation)):
        found = [Proxy(UNKNOWN, signs)]
    unique = {proxy.name: proxy for proxy in reversed(found)}
    return tuple(proxy for proxy in found if unique[proxy.name] is proxy)


def _on_answer(answer: Answer | None) -> list[Proxy]:
    if answer is None:
        return []
    found = []
    for name, field, pattern in ON_ANSWERS:
        value = answer.get(field)
        if value is not None and re.search(pattern, value, re.IGNORECASE):
            found.append(Proxy(name, f"{field}: {value}"))
    return found


def _on_request(observation: Observation) -> list[Proxy]:
    seen = observation.seen
    if seen is None:
        return []
    found = [
        Proxy(name, f"{field} on the request")
        for name, pattern in ON_REQUESTS
        for field in seen.telling
        if re.fullmatch(pattern, field)
    ]
    for name, field, pattern in ON_ANSWERS:
        if field == "via" and re.search(pattern, seen.via, re.IGNORECASE):
            found.append(Proxy(name, f"via: {seen.via} on the request"))
    return found


def _signs(observation: Observation) -> str:
    """Tell by what it shows that there is somebody, who cannot be named."""
    answer, seen = observation.answer, observation.seen
    if answer is not None and (via := answer.get("via")):
        return f"via: {via}"
    if answer is not None and (server := answer.get("server")) and not SERVERS.search(server):
        return f"server: {server}"
    if seen is not None and seen.telling:
        return f"{', '.join(seen.telling)} on the request"
    if answer is not None and seen is not None and _changed_version(answer, seen.http):
        return f"{answer.http_version} here, HTTP/{seen.http} at the application"
    if answer is not None and seen is not None and not answer.url.startswith(f"{seen.scheme}:"):
        return f"{answer.url.partition(':')[0]} here, {seen.scheme} at the application"
    return ""


def _changed_version(answer: Answer, http: str) -> bool:
    return bool(http) and answer.http_version.removeprefix("HTTP/").split(".")[0] != http.split(".")[0]
