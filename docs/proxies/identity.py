"""Streams that nothing compresses, because they say that they are encoded already: as what they are."""

from livepush_asgi import LivePush, MemoryBroker, public


def with_identity(app):
    """Say of each answer that it is encoded as it is."""

    async def wrapped(scope, receive, send):
        async def send_with_identity(message):
            if message["type"] == "http.response.start" and message["status"] == 200:
                headers = [*message["headers"], (b"content-encoding", b"identity")]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_with_identity if scope["type"] == "http" else send)

    return wrapped


app = with_identity(LivePush(MemoryBroker(), public("news")))
