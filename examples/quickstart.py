"""The quickstart of mgf-livepush with changed imports. `uvicorn --app-dir examples quickstart:app`"""

import os

from fastapi import APIRouter, FastAPI, Request
from redis.asyncio import Redis

from livepush_asgi import RedisBroker, SlotCap, SSEStreamService
from livepush_asgi.contrib.fastapi import sse_streaming_response

redis = Redis.from_url(os.environ.get("LIVEPUSH_REDIS", "redis://localhost:6379/0"))
sse = SSEStreamService(RedisBroker(redis), SlotCap(redis, cap=20))
router = APIRouter()


@router.get("/events/stream")
async def stream(request: Request, tenant_id: str):
    # 429 (Retry-After: 5) automatically when the per-key cap is full.
    return await sse_streaming_response(sse, request, channel=f"events:{tenant_id}", slot_key=str(tenant_id))


app = FastAPI()
app.include_router(router)
