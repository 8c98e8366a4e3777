"""The published rules on brokers that break them: each fault is found by the rule that is about it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio.lowlevel
import pytest

from livepush_asgi import MemoryBroker
from livepush_asgi.brokers import READ_BYTES, Broker, ForwardingSubscription, Page, Subscription
from livepush_asgi.errors import PositionConflictError
from livepush_asgi.testing import BrokerContract, HistoryBrokerContract, MockBroker
from livepush_asgi.wire.cursor import Position
from livepush_asgi.wire.event import split_position

from .pull_broker import PullBroker, PullSubscription

pytestmark = pytest.mark.virtual_time

PLAIN, HISTORY = BrokerContract(), HistoryBrokerContract()


class IgnoresCase(MockBroker):
    async def publish(self, channel: str, payload: str | bytes) -> int:
        return await super().publish(channel.lower(), payload)

    async def subscribe(self, channel: str) -> ForwardingSubscription:
        return await super().subscribe(channel.lower())


class SendsText(MockBroker):
    async def publish(self, channel: str, payload: str | bytes) -> int:
        return await super().publish(
            channel, payload if isinstance(payload, str) else payload.decode(errors="replace")
        )


class SendsTwice(MockBroker):
    async def publish(self, channel: str, payload: str | bytes) -> int:
        await super().publish(channel, payload)
        return await super().publish(channel, payload)


class ForgetsNobody(MockBroker):
    async def subscribe(self, channel: str) -> ForwardingSubscription:
        subscription = await super().subscribe(channel)
        await anyio.lowlevel.checkpoint()
        return subscription


class LosesWhenCancelled(PullSubscription):
    async def get_message(self, *, timeout: float) -> bytes | None:
        payload = await super().get_message(timeout=timeout)
        await anyio.lowlevel.checkpoint()
        return payload


class DoesNotWait(PullSubscription):
    async def get_message(self, *, timeout: float) -> bytes | None:
        return await super().get_message(timeout=0)


class DoesNotClose(PullSubscription):
    async def close(self) -> None:
        pass


class TakesEmptyForNothing(PullSubscription):
    async def get_message(self, *, timeout: float) -> bytes | None:
        return await super().get_message(timeout=timeout) or None


class PullsWith(PullBroker):
    def __init__(self, kind: type[PullSubscription]) -> None:
        super().__init__()
        self._kind = kind

    async def subscribe(self, channel: str) -> Subscription:
        return self._kind(await self.inner.subscribe(channel))


class LooksFirst(MemoryBroker):
    """Checks a key and an expected position, and adds afterwards: a race."""

    def __init__(self, *, per_channel: bool = True) -> None:
        super().__init__()
        self._keys: dict[tuple[str, str], Position] = {}
        self._per_channel = per_channel

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        key = (channel if self._per_channel else "", idempotency_key or "")
        if key in self._keys:
            return self._keys[key]
        if expected_position is not None:
            page = await self.read(channel, 0, 0)
            if page.last and expected_position != Position(page.epoch, page.last):
                raise PositionConflictError(channel, page.last)
        await anyio.lowlevel.checkpoint()
        position = await super().append(channel, payload)
        if idempotency_key is not None:
            self._keys[key] = position
        return position


class SeesNoEpoch(MemoryBroker):
    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        if expected_position is not None:
            expected_position = Position((await self.read(channel, 0, 0)).epoch, expected_position.offset)
        return await super().append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )


class KnowsNoZero(MemoryBroker):
    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        return await super().read(channel, after, limit or 100, max_bytes=max_bytes)


class ReadsAllBytes(MemoryBroker):
    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        return await super().read(channel, after, limit)


class ReadsNothingLarge(MemoryBroker):
    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        page = await super().read(channel, after, limit, max_bytes=max_bytes)
        small = tuple(record for record in page.records if len(record.payload) <= max_bytes)
        return replace(page, records=small)


class WithoutPositions(PullSubscription):
    async def get_message(self, *, timeout: float) -> bytes | None:
        payload = await super().get_message(timeout=timeout)
        return None if payload is None else split_position(payload)[1]


class GivesNoPositions(MemoryBroker):
    """Does not forward, and keeps the positions for itself."""

    async def subscribe(self, channel: str) -> Subscription:
        return WithoutPositions(await super().subscribe(channel))


class ForwardsPositionsOnly(WithoutPositions):
    def __init__(self, inner: ForwardingSubscription) -> None:
        super().__init__(inner)
        self.forward = inner.forward


class GivesPositionsToSinksOnly(MemoryBroker):
    """Forwards with positions and answers `get_message` without."""

    async def subscribe(self, channel: str) -> Subscription:
        subscription = await super().subscribe(channel)
        assert isinstance(subscription, ForwardingSubscription)
        return ForwardsPositionsOnly(subscription)


# Any, because each takes the broker of its own port.
Rule = Callable[[Any], Awaitable[None]]


@pytest.mark.parametrize(
    ("rule", "broker"),
    [
        (PLAIN.test_no_channel_hears_another_one, IgnoresCase),
        (PLAIN.test_bytes_arrive_unchanged, SendsText),
        (PLAIN.test_bytes_arrive_unchanged, lambda: PullsWith(TakesEmptyForNothing)),
        (PLAIN.test_payloads_come_in_the_order_of_their_publisher, SendsTwice),
        (PLAIN.test_every_subscription_of_a_channel_gets_every_payload, SendsTwice),
        (PLAIN.test_a_cancelled_subscribe_leaves_nothing, ForgetsNobody),
        (PLAIN.test_a_cancelled_get_message_loses_nothing, lambda: PullsWith(LosesWhenCancelled)),
        (PLAIN.test_get_message_returns_none_after_the_timeout, lambda: PullsWith(DoesNotWait)),
        (PLAIN.test_nothing_comes_after_close, lambda: PullsWith(DoesNotClose)),
        (HISTORY.test_a_key_adds_one_event, lambda: LooksFirst(per_channel=False)),
        (HISTORY.test_a_key_adds_one_event_however_often_at_once, LooksFirst),
        (HISTORY.test_one_of_many_follows_the_expected_position, LooksFirst),
        (HISTORY.test_an_append_adds_behind_the_expected_position_alone, SeesNoEpoch),
        (HISTORY.test_a_log_is_read_page_by_page, KnowsNoZero),
        (HISTORY.test_the_oldest_events_go, MemoryBroker),
        (HISTORY.test_a_page_is_bounded_in_bytes, ReadsAllBytes),
        (HISTORY.test_a_page_is_bounded_in_bytes, ReadsNothingLarge),
        (HISTORY.test_every_subscription_gets_the_positions, GivesNoPositions),
        (HISTORY.test_what_is_delivered_is_in_the_log, GivesNoPositions),
        (HISTORY.test_bytes_are_kept_unchanged, GivesNoPositions),
        (HISTORY.test_get_message_and_forward_hand_out_the_same, GivesNoPositions),
        (HISTORY.test_get_message_and_forward_hand_out_the_same, GivesPositionsToSinksOnly),
    ],
)
async def test_a_broken_rule_is_found(rule: Rule, broker: Callable[[], Broker]) -> None:
    # A fault in a task group comes as a group, and who waits in vain as a TimeoutError.
    with pytest.raises((AssertionError, TimeoutError, ExceptionGroup)):
        await rule(broker())
