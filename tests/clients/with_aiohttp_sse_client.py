"""aiohttp-sse-client, which comes back by itself."""

import asyncio
import json
import sys

from aiohttp_sse_client.client import EventSource  # type: ignore[import-untyped]


async def main(url: str) -> None:
    async with EventSource(url) as source:
        async for event in source:
            print(json.dumps([event.type, event.data, event.last_event_id]), flush=True)
            if event.type == "end":
                return


asyncio.run(main(sys.argv[1]))
