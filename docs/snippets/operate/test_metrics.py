import pytest

from livepush_asgi import LivePush, MemoryBroker, public
from livepush_asgi.testing import Client

push = LivePush(MemoryBroker(), public("news"))


# start: metrics
def metrics(push):
    """Return the numbers of this process in the text format of Prometheus."""
    now = push.statistics()
    lines = [f"livepush_{name} {int(now[name])}" for name in ("streams", "channels", "healthy", "draining")]
    lines += [f"livepush_{name}_total {now[name]}" for name in ("opened", "published", "delivered")]
    lines += [f'livepush_ended_total{{reason="{reason}"}} {count}' for reason, count in now["ended"].items()]
    lines += [f'livepush_refused_total{{cause="{cause}"}} {count}' for cause, count in now["refused"].items()]
    return "\n".join(lines) + "\n"


# end: metrics


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_the_numbers_of_a_process():
    async with Client(push, lifespan=True) as client:
        async with client.open("/") as stream:
            await push.publish("news", "hello")
            await stream.next_event()
            assert "livepush_streams 1\n" in metrics(push)
        assert 'livepush_ended_total{reason="disconnect"} 1\n' in metrics(push)
        assert "livepush_delivered_total 1\n" in metrics(push)
