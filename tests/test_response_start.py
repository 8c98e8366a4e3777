"""What is published as soon as the head of the response is there arrives, over real servers and brokers.

A page does that in `EventSource.onopen`. Each time on a channel that nobody has subscribed yet.
"""

from pathlib import Path

import pytest

from .serving import Serving, uvicorn
from .valkey import ValkeyProcess

TIMES = 40

pytestmark = pytest.mark.real_time


@pytest.mark.parametrize("history", ["", "yes"], ids=["pubsub", "streams"])
@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
async def test_what_is_published_at_the_head_of_the_response_arrives(
    valkey: ValkeyProcess, tmp_path: Path, server: str, history: str
) -> None:
    environment = {"REDIS_URL": valkey.url, "HISTORY": history, "CAP": str(TIMES)}
    log = tmp_path / "log"
    if server == "uvicorn":
        serving = uvicorn("tests.apps.push:app", log, environment=environment)
    else:
        command = "hypercorn tests.apps.push:app --bind 127.0.0.1:{port}"
        serving = Serving(command, log, environment=environment)
    async with serving:
        for number in range(TIMES):
            stream = await serving.open(f"/events?channel=fresh-{number}")
            await serving.open(f"/publish?channel=fresh-{number}", method="POST", body=b"from onopen")
            assert (await stream.next_event()).data == "from onopen"
