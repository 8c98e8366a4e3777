"""Remedies: the lines of configuration that mend a fault, by the program that has to be told."""

from collections.abc import Mapping, Sequence

from .finding import Remedy
from .proxies import UNKNOWN, Proxy

NGINX = "nginx, in the location"
BUFFERED = {
    "nginx": Remedy(NGINX, ("proxy_buffering off;",)),
    "Caddy": Remedy("Caddy, in reverse_proxy", ("flush_interval -1",)),
    "Apache": Remedy("Apache", ("ProxyPass /events http://127.0.0.1:8000/events flushpackets=on",)),
    "Varnish": Remedy("Varnish, in vcl_backend_response", ("set beresp.do_stream = true;",)),
    "Traefik": Remedy("Traefik", ("take the `buffering` middleware off the route",)),
    "Fastly": Remedy("Fastly, in vcl_fetch", ("set beresp.do_stream = true;",)),
    "AWS API Gateway": Remedy("AWS", ("API Gateway may buffer whole answers: put an ALB in its place",)),
    "Express": Remedy("Node", ("pass the answer on as it comes: upstream.body.pipe(response)",)),
}
CORKED = {**BUFFERED, "HAProxy": Remedy("HAProxy, in defaults", ("option http-no-delay",))}
COMPRESSED = {
    "nginx": Remedy(NGINX, ("gzip off;",)),
    "Caddy": Remedy("Caddy", ("@other not path /events /events/*", "encode @other gzip zstd")),
    "HAProxy": Remedy(
        "HAProxy, beside `compression algo`",
        ("compression type text/html text/plain text/css application/json",),
    ),
    "Apache": Remedy("Apache", ('SetEnvIf Request_URI "^/events" no-gzip=1',)),
    "Varnish": Remedy("Varnish, in vcl_backend_response", ("set beresp.do_gzip = false;",)),
    "Express": Remedy("Node", ("compression({ filter: request => !request.path.startsWith('/events') })",)),
}
BY_APPLICATION = Remedy(
    "the application, if its GZipMiddleware does it: put the stream outside",
    ('app = LivePushMiddleware(app, push, path="/events")  # around the one with GZipMiddleware',),
)
IDLE = {
    "nginx": Remedy(NGINX, ("proxy_read_timeout 1h;",)),
    "HAProxy": Remedy("HAProxy, in defaults", ("timeout client 1h", "timeout server 1h")),
    "Caddy": Remedy("Caddy, in reverse_proxy", ("transport http {", "    read_timeout 0", "}")),
    "Apache": Remedy("Apache", ("ProxyPass /events http://127.0.0.1:8000/events timeout=3600",)),
    "Envoy": Remedy("Envoy, in the route", ("timeout: 0s", "idle_timeout: 0s")),
    "Traefik": Remedy("Traefik", ("--entryPoints.web.transport.respondingTimeouts.idleTimeout=1h",)),
    "Varnish": Remedy("Varnish", ("-p between_bytes_timeout=3600 -p send_timeout=3600",)),
    "AWS ALB": Remedy(
        "AWS",
        (
            "aws elbv2 modify-load-balancer-attributes --load-balancer-arn ARN \\",
            "    --attributes Key=idle_timeout.timeout_seconds,Value=3600",
        ),
    ),
    "Google Cloud": Remedy("Google Cloud", ("gcloud compute backend-services update NAME --timeout=3600",)),
    "Vite": Remedy("Vite, in server.proxy['/events']", ("timeout: 0,", "proxyTimeout: 0,")),
    "Express": Remedy("Node's http-proxy", ("timeout: 0,", "proxyTimeout: 0,")),
}
LIMITED = {
    "Caddy": Remedy("Caddy, in the global options", ("servers {", "    timeouts { write 0 }", "}")),
    "Envoy": Remedy("Envoy, in the route", ("timeout: 0s",)),
    "Google Cloud": Remedy("Google Cloud", ("gcloud compute backend-services update NAME --timeout=3600",)),
    "Traefik": Remedy("Traefik", ("--entryPoints.web.transport.respondingTimeouts.writeTimeout=0",)),
    "Vercel": Remedy("Vercel, in the function", ("export const maxDuration = 300",)),
}
# With no name to go by: those that are met most.
GUESSES: Mapping[str, tuple[str, ...]] = {
    "buffered": ("nginx",),
    "corked": ("HAProxy",),
    "compressed": ("nginx", "HAProxy"),
    "idle": ("nginx", "HAProxy"),
    "limit": (),
}
TABLES: Mapping[str, Mapping[str, Remedy]] = {
    "buffered": BUFFERED,
    "corked": CORKED,
    "compressed": COMPRESSED,
    "idle": IDLE,
    "limit": LIMITED,
}


def remedies_for(kind: str, proxies: Sequence[Proxy]) -> tuple[Remedy, ...]:
    """Return what mends a kind of fault: `buffered`, `corked`, `compressed`, `idle` or `limit`."""
    table = TABLES[kind]
    found = [table[proxy.name] for proxy in proxies if proxy.name in table]
    named = [proxy for proxy in proxies if proxy.name != UNKNOWN]
    if not found and not named:
        found = [Remedy(f"if it is {table[name].where}", table[name].lines) for name in GUESSES[kind]]
    if kind == "compressed" and not named:
        found = [*found, BY_APPLICATION]
    return tuple(found)


def lifetime_under(seconds: float) -> Remedy:
    """Return the setting that ends each stream before it is cut off, so that clients come back in order."""
    lifetime = int(0.9 * seconds) if seconds >= 2 else round(0.9 * seconds, 1)
    return Remedy("the application", (f"LivePush(..., timing=Timing(max_lifetime={lifetime}))",))


def heartbeat_under(seconds: float) -> Remedy:
    """Return the setting that keeps a stream from being silent for so long."""
    interval = max(1, int(seconds / 2)) if seconds >= 2 else round(seconds / 2, 2)
    return Remedy("the application", (f"LivePush(..., timing=Timing(heartbeat_interval={interval}))",))
