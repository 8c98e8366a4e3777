"""A client whose events Python code reads and passes on: what it gets is what a Subscriber yields."""

import anyio

from livepush_asgi import Gap, LivePush, NotRunningError
from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send
from livepush_asgi.wire.control import close_block, gap_block, open_block
from livepush_asgi.wire.event import encode_block

from .plan import Plan


def subscriber_app(push: LivePush, plan: Plan) -> ASGIApp:
    """Return an application that writes the items of a Subscriber as an event stream."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        last_id = scope["connection"].last_id

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                await _pass_on(push, plan, last_id, send)
            except NotRunningError:
                await send({"type": "http.response.start", "status": 503, "headers": []})
                await send(_body(b"", more=False))
            tasks.cancel_scope.cancel()

    return app


async def _pass_on(push: LivePush, plan: Plan, last_id: str | None, send: Send) -> None:
    events = push.subscribe(*plan.channels, replay=plan.replay, last_event_id=last_id)
    async with events:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # An id that the client has says nothing about a channel that is new to it.
        known = last_id or ""
        id = None if events.last_event_id == known else events.last_event_id
        await send(_body(open_block(1000, id, resumed=False)))
        async for item in events:
            id, known = None if item.id == known else item.id, item.id
            if isinstance(item, Gap):
                block = gap_block(item.channel, item.reason, id)
            else:
                block = encode_block(item.data, event=item.event.event, id=id)
            await send(_body(block))
        assert events.end_reason is not None
        await send(_body(close_block(events.end_reason, 1000), more=False))


def _body(chunk: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}
