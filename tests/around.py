"""What stands between a server and an application."""

from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send


def behind_a_middleware(app: ASGIApp) -> ASGIApp:
    """Put a `send` of its own around the server's, as most middleware does."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            await send(message)

        await app(scope, receive, send_on)

    return middleware
