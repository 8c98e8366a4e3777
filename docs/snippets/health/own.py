from app import push

from livepush_asgi import LivePushMiddleware


async def your_app(scope, receive, send):
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


served = LivePushMiddleware(your_app, push)

# start: paths
health = push.health()


async def application(scope, receive, send):
    is_check = scope["type"] == "http" and scope["path"] in ("/health/ready", "/health/live")
    await (health if is_check else served)(scope, receive, send)


# end: paths
