"""The connection scope of a request, complete as the specification has it.

https://asgi.readthedocs.io/en/latest/specs/www.html#http-connection-scope
"""

from collections.abc import Iterable, Mapping
from typing import TypedDict, Unpack
from urllib.parse import quote, unquote, urlencode

from ..runtime.asgi import Scope

Pairs = Mapping[str, str] | Iterable[tuple[str, str]]


class RequestOptions(TypedDict, total=False):
    """What a request may carry besides its method, path and body. Names and values are text.

    A name may come several times in pairs, not in a mapping. A `query` that is a str is sent as it is.
    """

    headers: Pairs
    query: Pairs | str
    cookies: Mapping[str, str] | None
    last_event_id: str | None


# What may stand in a path as it is: RFC 3986's pchar, the slash, and escapes that are there already.
_PATH_SAFE = "/%:@!$&'()*+,;=-._~"


def http_scope(
    method: str = "GET",
    path: str = "/",
    *,
    root_path: str = "",
    spec_version: str = "2.3",
    **options: Unpack[RequestOptions],
) -> Scope:
    """Return the scope that a server would make of a request.

    `path` is the whole path of the URL, `root_path` included where a server or a mount puts it
    there, and may have a query of its own.
    """
    path, _, own_query = path.partition("?")
    raw_path = quote(path, safe=_PATH_SAFE)
    query = options.get("query", "")
    text = query if isinstance(query, str) else urlencode(_pairs(query))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("ascii"),
        "query_string": "&".join(filter(None, (own_query, text))).encode("ascii"),
        "root_path": root_path,
        "headers": _header_fields(options),
        "client": ("127.0.0.1", 50123),
        "server": ("testserver", 80),
    }


def _pairs(given: Pairs) -> list[tuple[str, str]]:
    return list(given.items() if isinstance(given, Mapping) else given)


def _header_fields(options: RequestOptions) -> list[tuple[bytes, bytes]]:
    pairs = _pairs(options.get("headers", ()))
    fields = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    names = dict(fields)
    if b"host" not in names:
        fields.insert(0, (b"host", b"testserver"))
    if b"accept" not in names:
        fields.append((b"accept", b"text/event-stream"))
    if cookies := options.get("cookies"):
        fields.append((b"cookie", "; ".join(f"{k}={v}" for k, v in cookies.items()).encode("latin-1")))
    if (last_event_id := options.get("last_event_id")) is not None:
        # The one header field that browsers send as UTF-8.
        fields.append((b"last-event-id", last_event_id.encode()))
    return fields
