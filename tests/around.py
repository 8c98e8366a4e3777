"""What stands between a server and an application."""

from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send


def behind_a_middleware(app: ASGIApp) -> ASGIApp:
    """Put a `send` of its own around the server's, as most middleware does. It takes one at a time."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        sending = False

        async def send_on(message: Message) -> None:
            nonlocal sending
            if sending:
                raise RuntimeError("a message was sent before an earlier one had been")
            sending = True
            try:
                await send(message)
            finally:
                sending = False

        await app(scope, receive, send_on)

    return middleware
