"""The application of the tests behind proxies: that of `push`, with what a query asks for.

`without=NAME` takes a header away from the answer, as a proxy does that keeps it for itself; `identity=1`
adds `Content-Encoding: identity`; `pad=N` begins with a comment of N bytes. With GZIP=default Starlette's
GZipMiddleware is in front of all, with GZIP=everything it leaves out nothing, as before its version 0.46.
"""

import os
from urllib.parse import parse_qs

from starlette.middleware.gzip import GZipMiddleware

from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send

from . import push


async def changed(scope: Scope, receive: Receive, send: Send) -> None:
    query = parse_qs(scope.get("query_string", b"").decode())
    without = {name.encode() for name in query.get("without", [])}

    async def send_changed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message["headers"] if name not in without]
            if "identity" in query:
                headers.append((b"content-encoding", b"identity"))
            message = {**message, "headers": headers}
        elif pad := int(query.pop("pad", ["0"])[0]):
            message = {**message, "body": b":" + b" " * pad + b"\n" + message["body"]}
        await send(message)

    await push.app(scope, receive, send_changed)


app: ASGIApp = changed
if gzip := os.environ.get("GZIP"):
    app = GZipMiddleware(changed) if gzip == "default" else GZipMiddleware(changed, exclude_content_types=())
