"""The errors of asyncpg, and the messages that the callers of a broker get."""

from urllib.parse import urlsplit

import asyncpg

from ...errors import BrokerUnavailableError

#: The errors of a server that is away, refuses or does not answer. TimeoutError is an OSError. asyncpg raises
#: the last one where the farewell of the server and a query cross.
FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

#: What to do about a pooler that gives each transaction another connection.
POOLER = (
    "a pooler in transaction mode (PgBouncer) lets no LISTEN through: give PostgresBroker the server's own "
    "address; `publish_in` may use the pooler"
)
_AWAY = "is it running, is the address right, and can it be reached from here?"
# The first that fits.
_REMEDIES = (
    (asyncpg.PostgresConnectionError, _AWAY),
    (asyncpg.AdminShutdownError, _AWAY),
    (asyncpg.CrashShutdownError, _AWAY),
    (asyncpg.InvalidAuthorizationSpecificationError, "check the user name and the password"),
    (asyncpg.InvalidCatalogNameError, "create the database"),
    (
        asyncpg.LockNotAvailableError,
        "a transaction that has published on this channel is open: end it sooner",
    ),
    (asyncpg.QueryCanceledError, "raise the statement_timeout of the broker's user"),
    (
        asyncpg.ProgramLimitExceededError,
        "if the NOTIFY queue is full: end the session that LISTENs and has a transaction open for long",
    ),
    (asyncpg.TooManyConnectionsError, "raise max_connections of the server, or lower that of the broker"),
    (asyncpg.CannotConnectNowError, "it is starting and will be there soon"),
    (asyncpg.DuplicatePreparedStatementError, POOLER),
    (asyncpg.InvalidSQLStatementNameError, POOLER),
    (asyncpg.ProtocolViolationError, POOLER),
    (asyncpg.ReadOnlySQLTransactionError, "this server is a standby: give the address of the primary"),
    (asyncpg.ObjectNotInPrerequisiteStateError, "this server may be a standby: give the primary's address"),
    (asyncpg.InvalidSchemaNameError, "create the schema that `prefix` names"),
    (asyncpg.PostgresError, "the server is there and refuses"),
    (PermissionError, "let the owner of the schema run the SQL of PostgresBroker.schema()"),
    (object, _AWAY),
)


def address_of(dsn: str | None) -> str:
    """Return where the server is, for messages; without user name and password."""
    parts = urlsplit(dsn or "")
    try:
        port = parts.port or 5432
    except ValueError:  # Several hosts.
        return f"PostgreSQL at {parts.netloc.rpartition('@')[2]}"
    return f"PostgreSQL at {parts.hostname}:{port}" if parts.hostname else "PostgreSQL"


def unavailable(attempt: str, address: str, cause: BaseException, permissions: str) -> BrokerUnavailableError:
    """Return the error to raise. It names the attempt, the server, the cause and the likely fix."""
    return BrokerUnavailableError(f"cannot {attempt}: {address}: {explain(cause, permissions)}")


def explain(cause: BaseException, permissions: str) -> str:
    """Return the text of an error with the likely fix. `permissions` is the SQL that gives them."""
    # asyncpg adds advice of its own below the first line.
    reason = str(cause).partition("\n")[0] or type(cause).__name__
    if isinstance(cause, asyncpg.InsufficientPrivilegeError):
        return f"{reason}; {permissions}"
    return f"{reason}; {next(remedy for kind, remedy in _REMEDIES if isinstance(cause, kind))}"
