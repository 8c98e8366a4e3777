"""Every asynchronous test runs on asyncio and on trio, in virtual time.

A module with real sockets, threads or processes overrides the fixture with plain "asyncio".
"""

from typing import Any

import pytest
from trio.testing import MockClock

from .virtual_clock import VirtualClockLoop


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    if request.param == "trio":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": VirtualClockLoop}
