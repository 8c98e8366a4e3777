"""Appends in a transaction of the application, on its connection: the port, and one call for every driver."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from inspect import isawaitable
from typing import Any, LiteralString, Protocol, TypeVar, overload, runtime_checkable

from ..wire.cursor import Position
from . import HistoryBroker

T = TypeVar("T")

# psycopg's TransactionStatus.IDLE and psycopg2's TRANSACTION_STATUS_IDLE.
_IDLE = 0
_STATES, _UNDEFINED_FUNCTION = ("sqlstate", "pgcode"), "42883"
_NO_TABLES = (
    "this database has no tables of PostgresBroker: is it the broker's own? The broker creates them on first "
    "use; a program that may come first runs the SQL of PostgresBroker.schema()"
)
_NO_TRANSACTION = (
    "an event is published in the transaction of the connection, and none is open: begin one by `async with "
    "connection.transaction():` (asyncpg, psycopg) or `with transaction.atomic():` (Django), or use `publish`"
)


class AsyncConnection(Protocol):
    """A connection of asyncpg, or an asynchronous connection or cursor of psycopg."""

    def execute(self, query: LiteralString, /) -> Awaitable[object]:
        """Run a statement."""
        ...


class SyncCursor(Protocol):
    """A cursor of psycopg, psycopg2 or Django."""

    def execute(self, query: LiteralString, /) -> object:
        """Run a statement."""
        ...

    def fetchone(self) -> object:
        """Return the next row."""
        ...


class SyncConnection(Protocol):
    """A connection of psycopg or psycopg2, or Django's `connection`."""

    def cursor(self) -> SyncCursor:
        """Return a new cursor."""
        ...


#: What `publish_in` and `append_in` take.
Connection = AsyncConnection | SyncConnection | SyncCursor


@runtime_checkable
class TransactionBroker(HistoryBroker, Protocol):
    """A broker whose logs are in the database of the application, and so take part in its transactions."""

    @overload
    def append_in(
        self,
        connection: AsyncConnection,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Awaitable[Position]: ...

    @overload
    def append_in(
        self,
        connection: SyncConnection | SyncCursor,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position: ...

    def append_in(
        self,
        connection: Connection,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position | Awaitable[Position]:
        """Add an event in the transaction of a connection, as `append` does; await it if the driver does.

        The event is added and delivered when the transaction commits, or never. Raises RuntimeError if no
        transaction is open.
        """
        ...


def append_on(
    # Any: the drivers have no type in common, and none of them need be installed.
    connection: Any,
    numbered: str,
    formatted: str,
    arguments: Sequence[object],
    result: Callable[[object], T],
) -> T | Awaitable[T]:
    """Run the append statement and return `result` of its one value, or an awaitable of it.

    `numbered` is the statement for asyncpg, `formatted` that for the others. Raises RuntimeError if the
    connection is not in a transaction, TypeError if it is no connection.
    """
    if hasattr(connection, "fetchval") and hasattr(connection, "is_in_transaction"):
        if not connection.is_in_transaction():
            raise RuntimeError(_NO_TRANSACTION)
        return _awaited(connection.fetchval(f"SELECT {numbered}", *arguments), result)
    is_connection = callable(getattr(connection, "cursor", None))
    cursor = connection.cursor() if is_connection else connection
    if not hasattr(cursor, "fetchone"):
        raise TypeError(
            "publish_in takes a connection of asyncpg, a connection or cursor of psycopg, or Django's "
            f"`connection`, not {type(connection).__name__}"
        )
    _check_transaction(cursor.connection)
    with _noted():
        executed = cursor.execute(formatted, arguments)
    if isawaitable(executed):
        return _fetched(executed, cursor, result, close=is_connection)
    with closing(cursor) if is_connection else nullcontext():
        return result(_value_of(cursor.fetchone()))


async def _awaited(value: Awaitable[object], result: Callable[[object], T]) -> T:
    with _noted():
        return result(await value)


@contextmanager
def _noted() -> Iterator[None]:
    """Tell what to do where the database does not know the append function."""
    try:
        yield
    except Exception as error:
        # The names of asyncpg and psycopg, and of psycopg2. Django wraps the error of its driver.
        states = {getattr(each, name, None) for each in (error, error.__cause__) for name in _STATES}
        if _UNDEFINED_FUNCTION in states:
            error.add_note(_NO_TABLES)
        raise


async def _fetched(
    executed: Awaitable[object], cursor: Any, result: Callable[[object], T], *, close: bool
) -> T:
    try:
        with _noted():
            await executed
        return result(_value_of(await cursor.fetchone()))
    finally:
        if close:
            await cursor.close()


def _check_transaction(connection: Any) -> None:
    # Without autocommit the statement begins a transaction, which the application has to commit.
    if connection.autocommit and connection.info.transaction_status == _IDLE:
        raise RuntimeError(_NO_TRANSACTION)


def _value_of(row: Any) -> object:
    # Rows are tuples unless the application has chosen otherwise.
    (value,) = row.values() if isinstance(row, Mapping) else row
    return value
