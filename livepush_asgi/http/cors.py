"""Cors: the origins whose pages may read the streams.

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from collections.abc import Iterable
from dataclasses import dataclass

RawHeader = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Cors:
    """An allow-list of origins, such as "https://app.example.com", as browsers send them.

    "*" allows every origin, but only without credentials: otherwise every page of the web could read a
    visitor's streams. `credentials` allows cookies (`new EventSource(url, {withCredentials: true})`).
    `headers` are the request headers that a preflight allows. `max_age` is the time in seconds for which a
    browser may cache the preflight.
    """

    origins: Iterable[str]
    credentials: bool = False
    headers: Iterable[str] = ("authorization", "cache-control", "last-event-id")
    max_age: int = 600

    def __post_init__(self) -> None:
        if isinstance(self.origins, str):
            raise TypeError("origins is a collection of origins, not one str")
        object.__setattr__(self, "origins", frozenset(self.origins))
        object.__setattr__(self, "headers", tuple(self.headers))
        for origin in self.origins:
            _check_origin(origin)
        if self.credentials and "*" in self.origins:
            raise ValueError(
                '"*" with credentials lets every page of the web read the streams; name the origins'
            )

    def answer(self, origin: str | None) -> list[RawHeader]:
        """Return the header fields of a response to a page of this origin."""
        vary = (b"vary", b"Origin")
        if "*" in self.origins:
            return [(b"access-control-allow-origin", b"*"), _EXPOSED]
        if origin is None or origin not in self.origins:
            return [vary]
        fields = [(b"access-control-allow-origin", origin.encode("latin-1")), _EXPOSED, vary]
        return [*fields, (b"access-control-allow-credentials", b"true")] if self.credentials else fields

    def preflight(self, origin: str | None, methods: bytes = b"GET, HEAD, OPTIONS") -> list[RawHeader]:
        """Return the header fields of a response to a preflight of a path that takes these methods."""
        fields = self.answer(origin)
        if not any(name == b"access-control-allow-origin" for name, _ in fields):
            return fields
        return [
            *fields,
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", ", ".join(self.headers).encode("latin-1")),
            (b"access-control-max-age", str(self.max_age).encode()),
        ]


_EXPOSED = (b"access-control-expose-headers", b"retry-after")


def _check_origin(origin: str) -> None:
    if origin == "*":
        return
    scheme, found, host = origin.partition("://")
    if not (scheme and found and host) or "/" in host or origin != origin.lower():
        raise ValueError(f"an origin is scheme://host[:port] in lower case, without a path, not {origin!r}")
    origin.encode("latin-1")
