from app import push
from litestar import Litestar, asgi
from litestar.types import Receive, Scope, Send

# start: mount
checks = push.health()


@asgi("/health", is_mount=True, copy_scope=True)
async def health(scope: Scope, receive: Receive, send: Send) -> None:
    await checks(scope, receive, send)


app = Litestar([health], lifespan=[push.lifespan])
# end: mount
