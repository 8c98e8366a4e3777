"""Proxies: their names, by the header fields they leave, and the configuration lines that mend a fault."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from .observation import Observation

UNKNOWN = "a proxy"
# A pattern for each name, in the order of the report. The signs are `field: value` of the answer, and `field
# on the request` and `via: value on the request` of the request as the application saw it.
SIGNS = {
    "Cloudflare": r"cf-ray|server: cloudflare",
    "Amazon CloudFront": r"x-amz-cf-id|via: .*cloudfront",
    "AWS ALB": r"server: .*awselb|x-amzn-trace-id on the request",
    "AWS API Gateway": r"x-amzn-requestid|x-amz-apigw-id",
    "Vercel": r"x-vercel-id",
    "Fly.io": r"fly-request-id|fly-.* on the request",
    "Heroku": r"via: .*(vegur|heroku)",
    "Netlify": r"x-nf-request-id",
    "Azure": r"x-azure-|x-arr-.* on the request",
    "Google Cloud": r"via: .*\bgoogle\b|server: google frontend|x-cloud-trace-context on the request",
    "Fastly": r"x-served-by: .*cache-",
    "Akamai": r"server: .*akamai",
    "Varnish": r"x-varnish|via: .*varnish",
    "Envoy": r"server: (istio-)?envoy|x-envoy-",
    "Kong": r"via: .*kong",
    "Caddy": r"via: .*caddy|server: caddy",
    "nginx": r"server: (nginx|openresty|tengine)",
    "HAProxy": r"server: .*haproxy",
    "Apache": r"server: apache",
    "Traefik": r"server: .*traefik",
    "Squid": r"via: .*squid",
    "IIS": r"server: .*microsoft-iis",
    "Next.js": r"x-powered-by: .*next\.js",
    "Express": r"x-powered-by: .*express",
    "Vite": r"/@vite/client",
    # Servers of Python applications name themselves in the field `server` too.
    UNKNOWN: r"via: |server: (?!.*(uvicorn|hypercorn|granian|daphne|gunicorn|livepush))"
    r"|.* (on the request|at the application)$",
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A program between the client and the application, and the sign by which it is known."""

    name: str
    known_by: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """Lines of a program's configuration. `where` names the program and the place in its configuration."""

    where: str
    lines: tuple[str, ...]


def remedy(where: str, *lines: str) -> Remedy:
    """Return a remedy of these lines."""
    return Remedy(where, lines)


NGINX, HAPROXY, NODE = "nginx, in the location", "HAProxy, in defaults", "Node"
APACHE_PASS = "ProxyPass /events http://127.0.0.1:8000/events"
GOOGLE = remedy("Google Cloud", "gcloud compute backend-services update NAME --timeout=3600")
BUFFERED = {
    "nginx": remedy(NGINX, "proxy_buffering off;"),
    "Caddy": remedy("Caddy, in reverse_proxy", "flush_interval -1"),
    "Apache": remedy("Apache", f"{APACHE_PASS} flushpackets=on"),
    "Varnish": remedy("Varnish, in vcl_backend_response", "set beresp.do_stream = true;"),
    "Traefik": remedy("Traefik", "take the `buffering` middleware off the route"),
    "Fastly": remedy("Fastly, in vcl_fetch", "set beresp.do_stream = true;"),
    "AWS API Gateway": remedy("AWS", "API Gateway may buffer whole answers: use an ALB instead"),
    "Express": remedy(NODE, "pass the answer on as it comes: upstream.body.pipe(response)"),
}
# The remedies by the kind of fault and the name of the proxy.
REMEDIES = {
    "buffered": BUFFERED,
    "corked": {**BUFFERED, "HAProxy": remedy(HAPROXY, "option http-no-delay")},
    "compressed": {
        "nginx": remedy(NGINX, "gzip off;"),
        "Caddy": remedy("Caddy", "@other not path /events /events/*", "encode @other gzip zstd"),
        "HAProxy": remedy(
            "HAProxy, beside `compression algo`",
            "compression type text/html text/plain text/css application/json",
        ),
        "Apache": remedy("Apache", 'SetEnvIf Request_URI "^/events" no-gzip=1'),
        "Varnish": remedy("Varnish, in vcl_backend_response", "set beresp.do_gzip = false;"),
        "Express": remedy(NODE, "compression({ filter: request => !request.path.startsWith('/events') })"),
    },
    "idle": {
        "nginx": remedy(NGINX, "proxy_read_timeout {limit}s;"),
        "HAProxy": remedy(HAPROXY, "timeout client {limit}s", "timeout server {limit}s"),
        "Caddy": remedy("Caddy, in reverse_proxy", "transport http {", "    read_timeout 0", "}"),
        "Apache": remedy("Apache", f"{APACHE_PASS} timeout={{limit}}"),
        "Envoy": remedy("Envoy, in the route", "timeout: 0s", "idle_timeout: 0s"),
        "Traefik": remedy("Traefik", "--entryPoints.web.transport.respondingTimeouts.idleTimeout={limit}s"),
        "Varnish": remedy("Varnish", "-p between_bytes_timeout={limit} -p send_timeout={limit}"),
        "AWS ALB": remedy(
            "AWS",
            "aws elbv2 modify-load-balancer-attributes --load-balancer-arn ARN \\",
            "    --attributes Key=idle_timeout.timeout_seconds,Value={limit}",
        ),
        "Google Cloud": GOOGLE,
        "Vite": remedy("Vite, in server.proxy['/events']", "timeout: 0,", "proxyTimeout: 0,"),
        "Express": remedy("Node's http-proxy", "timeout: 0,", "proxyTimeout: 0,"),
    },
    "limit": {
        "Caddy": remedy("Caddy, in the global options", "servers {", "    timeouts { write 0 }", "}"),
        "Envoy": remedy("Envoy, in the route", "timeout: 0s"),
        "Google Cloud": GOOGLE,
        "Traefik": remedy("Traefik", "--entryPoints.web.transport.respondingTimeouts.writeTimeout=0"),
        "Vercel": remedy("Vercel, in the function", "export const maxDuration = 300"),
    },
}
# The most common causes, where no proxy is known by name.
BOTH = "nginx HAProxy"
GUESSES = {"buffered": "nginx", "corked": "HAProxy", "compressed": BOTH, "idle": BOTH, "limit": ""}
BY_APPLICATION = remedy(
    "the application, if its GZipMiddleware compresses: put the stream outside of it",
    'app = LivePushMiddleware(app, push, path="/events")  # app already has the GZipMiddleware',
)


def remedies_for(kind: str, proxies: Sequence[Proxy], limit: int = 0) -> tuple[Remedy, ...]:
    """Return the remedies for a kind of fault: `buffered`, `corked`, `compressed`, `idle` or `limit`.

    Those for `idle` set a limit of this many seconds.
    """
    table = REMEDIES[kind]
    if kind == "idle":
        lines = {
            name: [line.replace("{limit}", str(limit)) for line in each.lines] for name, each in table.items()
        }
        table = {name: remedy(each.where, *lines[name]) for name, each in table.items()}
    named = [proxy.name for proxy in proxies if proxy.name != UNKNOWN]
    if named:
        return tuple(table[name] for name in named if name in table)
    found = [Remedy(f"if it is {table[name].where}", table[name].lines) for name in GUESSES[kind].split()]
    return (*found, BY_APPLICATION) if kind == "compressed" else tuple(found)


def limit_over(heartbeat: float, cut_after: float) -> int:
    """Return an idle time-out in seconds, by far longer than the heartbeat and the silence that was cut.

    It is that of the configurations in docs/guides/deploy.md for the heartbeat of 15 s.
    """
    return 60 * ceil(max(4 * heartbeat, 2 * cut_after, 60) / 60)


def timing_under(setting: str, seconds: float) -> Remedy:
    """Return a `Timing` of the application with a setting of this many seconds, whole ones if possible."""
    value = round(seconds, 2) if seconds < 1 else int(seconds)
    return remedy("the application", f"LivePush(..., timing=Timing({setting}={value}))")


def proxies_of(observation: Observation, *, vite: bool = False) -> tuple[Proxy, ...]:
    """Return the proxies that can be known, each with its first sign."""
    signs = [*_signs(observation), *(["/@vite/client is there"] if vite else [])]
    found = []
    for name, pattern in SIGNS.items():
        if sign := next((sign for sign in signs if re.match(pattern, sign, re.IGNORECASE)), None):
            found.append(Proxy(name, sign))
    return tuple([proxy for proxy in found if proxy.name != UNKNOWN] or found)


def _signs(observation: Observation) -> Iterator[str]:
    answer, seen = observation.answer, observation.seen
    if answer is not None:
        yield from (f"{name}: {value}" for name, value in answer.headers)
    if answer is None or not observation.probed:
        return
    yield from (f"{name} on the request" for name in seen.telling)
    if seen.via:
        yield f"via: {seen.via} on the request"
    if seen.http and answer.http_version.removeprefix("HTTP/")[:1] != seen.http[:1]:
        yield f"{answer.http_version} here, HTTP/{seen.http} at the application"
    if not answer.url.startswith(f"{seen.scheme}:"):
        yield f"{answer.url.partition(':')[0]} here, {seen.scheme} at the application"
