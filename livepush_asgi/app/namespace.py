"""Namespaces: prefixes that keep the channels and slot keys of applications on one server apart.

The wrappers here add the prefix to each name that leaves the process. The rest of the component, the
application and the clients use the names without prefix.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ..brokers import READ_BYTES, Broker, HistoryBroker, Page, Subscription, append_in_order
from ..brokers.transaction import Connection, TransactionBroker
from ..errors import CapExceededError, PositionConflictError
from ..slots import Lease, Slots
from ..wire.cursor import Position
from ..wire.event import RESERVED_PREFIX

T = TypeVar("T")
B = TypeVar("B", bound=Broker)
H = TypeVar("H", bound=HistoryBroker)

_NAMESPACE = re.compile(r"[A-Za-z0-9._-]+")


def check_namespace(namespace: object) -> None:
    """Raise TypeError or ValueError if this is neither a namespace nor None."""
    if namespace is None:
        return
    if not isinstance(namespace, str):
        raise TypeError(f"a namespace is a str, such as 'staging', or None, not {type(namespace).__name__}")
    if not _NAMESPACE.fullmatch(namespace) or namespace.startswith(RESERVED_PREFIX):
        raise ValueError(
            "a namespace is made of letters, digits, '-', '_' and '.', and does not begin with "
            f"{RESERVED_PREFIX!r}; not {namespace!r}"
        )


def broker_in(broker: Broker, namespace: str | None) -> Broker:
    """Return a broker that adds the namespace to each channel, or the broker itself if it is None."""
    check_namespace(namespace)
    if namespace is None:
        return broker
    if isinstance(broker, TransactionBroker):
        return _TransactionBrokerInNamespace(broker, namespace)
    if isinstance(broker, HistoryBroker):
        return _HistoryBrokerInNamespace(broker, namespace)
    return _BrokerInNamespace(broker, namespace)


def slots_in(slots: Slots | None, namespace: str | None) -> Slots | None:
    """Return a cap that adds the namespace to each slot key, or the cap itself if it is None."""
    return slots if slots is None or namespace is None else _SlotsInNamespace(slots, namespace)


class _Wrapper(Generic[T]):
    """Has the attributes of the wrapped object, apart from the methods that take a name."""

    def __init__(self, wrapped: T, namespace: str) -> None:
        self._wrapped = wrapped
        self._namespace = namespace

    def __getattr__(self, name: str) -> object:
        return getattr(self._wrapped, name)


class _BrokerInNamespace(_Wrapper[B]):
    async def publish(self, channel: str, payload: str | bytes) -> int:
        return await self._wrapped.publish(self._name(channel), payload)

    async def subscribe(self, channel: str) -> Subscription:
        return await self._wrapped.subscribe(self._name(channel))

    def _name(self, channel: str) -> str:
        # A reserved name keeps its prefix, so that no channel of an application can have the same name.
        if channel.startswith(RESERVED_PREFIX):
            return f"{RESERVED_PREFIX}{self._namespace}:{channel.removeprefix(RESERVED_PREFIX)}"
        return f"{self._namespace}:{channel}"


class _HistoryBrokerInNamespace(_BrokerInNamespace[H]):
    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        try:
            return await self._wrapped.append(
                self._name(channel),
                payload,
                idempotency_key=idempotency_key,
                expected_position=expected_position,
            )
        except PositionConflictError as error:
            raise PositionConflictError(channel, error.last) from error

    async def append_batch(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        try:
            return await append_in_order(self._wrapped, self._name(channel), payloads, expected_position)
        except PositionConflictError as error:
            raise PositionConflictError(channel, error.last) from error

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        return await self._wrapped.read(self._name(channel), after, limit, max_bytes=max_bytes)

    @property
    def event_age(self) -> Callable[[str, Position], Awaitable[float | None]] | None:
        """The `event_age` of the wrapped broker, or None if it has none."""
        event_age = getattr(self._wrapped, "event_age", None)
        if event_age is None:
            return None
        return lambda channel, position: event_age(self._name(channel), position)


class _TransactionBrokerInNamespace(_HistoryBrokerInNamespace[TransactionBroker]):
    def append_in(
        self,
        connection: Connection,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position | Awaitable[Position]:
        try:
            position: Position | Awaitable[Position] = self._wrapped.append_in(
                connection,
                self._name(channel),
                payload,
                idempotency_key=idempotency_key,
                expected_position=expected_position,
            )
        except PositionConflictError as error:
            raise PositionConflictError(channel, error.last) from error
        return position if isinstance(position, Position) else _with_channel(channel, position)


async def _with_channel(channel: str, appending: Awaitable[Position]) -> Position:
    try:
        return await appending
    except PositionConflictError as error:
        raise PositionConflictError(channel, error.last) from error


class _Key(str):
    """A slot key with the namespace. `plain` is the key without it, for the hooks of the application."""

    __slots__ = ("plain",)

    plain: str


class _SlotsInNamespace(_Wrapper[Slots]):
    @property
    def cap(self) -> int:
        return self._wrapped.cap

    async def acquire_lease(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        key = _Key(f"{self._namespace}:{slot_key}")
        key.plain = slot_key
        try:
            return await self._wrapped.acquire_lease(key, on_replaced)
        except CapExceededError as error:
            raise CapExceededError(slot_key, error.cap) from error

    async def aclose(self) -> None:
        await self._wrapped.aclose()
