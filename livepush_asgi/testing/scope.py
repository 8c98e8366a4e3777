"""The connection scope of a request, complete as the specification has it.

https://asgi.readthedocs.io/en/latest/specs/www.html#http-connection-scope
"""

from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote, urlencode

from ..runtime.asgi import Scope

Pairs = Mapping[str, str] | Iterable[tuple[str, str]]

# What may stand in a path as it is: RFC 3986's pchar, the slash, and escapes that are there already.
_PATH_SAFE = "/%:@!$&'()*+,;=-._~"


def http_scope(
    method: str,
    path: str,
    *,
    root_path: str,
    spec_version: str,
    headers: Pairs,
    query: Pairs | str,
    cookies: Mapping[str, str],
    last_event_id: str | None,
) -> Scope:
    """Describe a request as a server would.

    `path` is the whole path of the URL, `root_path` included where a server or a mount puts it
    there, and may have a query of its own.
    """
    path, _, own_query = path.partition("?")
    raw_path = quote(path, safe=_PATH_SAFE).encode("ascii")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "http",
        "path": unquote(raw_path.decode("ascii")),
        "raw_path": raw_path,
        "query_string": "&".join(filter(None, (own_query, _query_text(query)))).encode("ascii"),
        "root_path": root_path,
        "headers": _header_fields(headers, cookies, last_event_id),
        "client": ("127.0.0.1", 50123),
        "server": ("testserver", 80),
    }


def _query_text(query: Pairs | str) -> str:
    if isinstance(query, str):
        return query
    return urlencode(list(query.items()) if isinstance(query, Mapping) else list(query))


def _header_fields(
    headers: Pairs, cookies: Mapping[str, str], last_event_id: str | None
) -> list[tuple[bytes, bytes]]:
    given = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    fields = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given]
    names = {name for name, _ in fields}
    if b"host" not in names:
        fields.insert(0, (b"host", b"testserver"))
    if b"accept" not in names:
        fields.append((b"accept", b"text/event-stream"))
    if cookies:
        fields.append((b"cookie", "; ".join(f"{k}={v}" for k, v in cookies.items()).encode("latin-1")))
    if last_event_id is not None:
        # The one header field that browsers send as UTF-8.
        fields.append((b"last-event-id", last_event_id.encode()))
    return fields
