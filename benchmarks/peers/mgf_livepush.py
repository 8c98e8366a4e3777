"""mgf-livepush, the predecessor, over its in-process broker: https://pypi.org/project/mgf-livepush/"""

from mgf.livepush import MockBroker, SlotCap, SSEStreamService
from mgf.livepush.fastapi import sse_streaming_response
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from benchmarks.traffic import start_publishing


class NoCount:
    """A counter that is never full: the in-process broker comes without one."""

    async def incr(self, key: str) -> int:
        return 1

    async def decr(self, key: str) -> int:
        return 1

    async def expire(self, key: str, seconds: int) -> bool:
        return True


broker = MockBroker()
service = SSEStreamService(broker, SlotCap(NoCount(), cap=10**6))


async def events(request: Request) -> Response:
    response: Response = await sse_streaming_response(service, request, channel="c", slot_key="k")
    return response


async def pub(request: Request) -> PlainTextResponse:
    start_publishing(broker.publish, request.query_params)
    return PlainTextResponse("ok")


app = Starlette(routes=[Route("/events", events), Route("/pub", pub)])
