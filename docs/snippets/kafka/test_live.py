import pytest
from aiokafka import ConsumerRecord
from live import route

from livepush_asgi import Event


@pytest.mark.parametrize(
    ("value", "routed"),
    [
        (b'{"user": 7, "total": 12}', ("user:7", Event({"user": 7, "total": 12}, "order"))),
        (b'{"total": 12}', None),
        (b"[]", None),
        (b"no JSON", None),
        (None, None),
    ],
)
def test_a_record_becomes_an_event_or_is_passed_over(value, routed):
    assert route(ConsumerRecord("orders", 0, 5, 1_700_000_000_000, 0, None, value, None, 0, 0, ())) == routed
