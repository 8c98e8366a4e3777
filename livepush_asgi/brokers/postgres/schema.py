"""The names of the tables and functions, the statements that call them, and the SQL that creates them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from ...errors import PositionConflictError
from ...wire.cursor import Position
from .. import Page, Record
from ..history import History

#: The version of `schema.sql`, which the comment of its append function has too.
VERSION = 1
_PREFIX = re.compile(r"(?:([A-Za-z_][A-Za-z0-9_]{0,39})\.)?([A-Za-z_][A-Za-z0-9_]{0,19})")
_TABLES = ("channel", "event", "key")
_QUALIFIED = re.compile(r"public\.livepush_(\w+)")
# An idempotency key is remembered for at least five minutes, and for a day where events have no age.
_LEAST_REMEMBER, _ENDLESS_REMEMBER = 300.0, 86_400.0
# How much of a channel's name the table has, for administrators.
_SHOWN = 200


def digest(name: str) -> str:
    """Return what the tables have in the place of a name. Raises UnicodeError if the name is not UTF-8."""
    return sha256(name.encode()).hexdigest()[:40]


def shown(channel: str) -> str:
    """Return the beginning of a channel's name as a database of any encoding can store it."""
    return channel[:_SHOWN].encode("ascii", "backslashreplace").decode().replace("\0", "\\0")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the read function."""

    epoch: str | None
    first: int
    last: int
    ancestors: str
    origins: str
    number: int | None
    payload: bytes


class Schema:
    """The names for one prefix, and the bounds of the logs."""

    def __init__(self, prefix: str, history: History) -> None:
        parts = _PREFIX.fullmatch(prefix) if isinstance(prefix, str) else None
        if parts is None:
            raise ValueError(
                "prefix is a name of at most 20 letters, digits and '_', such as 'livepush', or two such as "
                f"'schema.livepush'; not {prefix!r}"
            )
        self._schema, self._name = parts[1] or "public", parts[2]
        #: What NOTIFY and LISTEN name.
        self.topic = f"{self._schema}.{self._name}"
        self.age = history.age
        self.remember = _ENDLESS_REMEMBER if history.age is None else max(history.age, _LEAST_REMEMBER)
        self.bounds = (history.events, history.size, history.age)
        call = self.named("public.livepush_append")
        casts = ("text", "text", "bytea[]", "text[]", "text[]", "bigint", "bigint", "float8")
        #: Appends on a connection of asyncpg, and on one of another driver.
        self.append_numbered = f"{call}({', '.join(f'${i}::{cast}' for i, cast in enumerate(casts, 1))})"
        self.append_formatted = f"SELECT {call}({', '.join(f'%s::{cast}' for cast in casts)}) AS outcomes"
        self.read = (
            "SELECT asked.key, page.* FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS "
            f"asked(key, after, most), LATERAL {self.named('public.livepush_read')}(asked.key, asked.after, "
            "asked.most, $4, $5, $6, $7) AS page"
        )
        self.ends = (
            f"SELECT key, epoch, last FROM {self.named('public.livepush_channel')} WHERE key = ANY ($1)"
        )
        self.age_of = (
            "SELECT extract(epoch FROM clock_timestamp() - at)::float8 FROM "
            + self.named("public.livepush_event JOIN public.livepush_channel ON log = id")
            + " WHERE key = $1 AND number = $2"
        )
        self.begin = f"SELECT {self.named('public.livepush_begin')}()"
        self.see = f"SELECT {self.named('public.livepush_see')}($1, $2)"
        self.clean = f"SELECT {self.named('public.livepush_clean')}($1, $2)"
        tables = " AND ".join(f"to_regclass('public.livepush_{name}') IS NOT NULL" for name in _TABLES)
        self.installed = self.named(
            f"SELECT obj_description(to_regproc('public.livepush_append'), 'pg_proc') WHERE {tables}"
        )
        #: What a user needs to publish and to listen.
        self.grant = (
            f"GRANT USAGE ON SCHEMA {self._schema}; GRANT SELECT, INSERT, UPDATE, DELETE ON "
            + self.named(", ".join(f"public.livepush_{name}" for name in _TABLES))
        )

    def named(self, text: str) -> str:
        """Return SQL with the names of this prefix."""
        return _QUALIFIED.sub(rf'"{self._schema}"."{self._name}_\1"', text)

    def sql(self) -> str:
        """Return the SQL that creates or updates tables and functions."""
        text = files(__package__).joinpath("schema.sql").read_text()
        text = text.replace("livepush_key_at ON", f'"{self._name}_key_at" ON')
        return self.named(text.replace("pg_notify('livepush'", f"pg_notify('{self.topic}'"))


def is_current(comment: object) -> bool:
    """Return whether the comment of the append function is that of this version or a later one."""
    found = re.fullmatch(r"livepush_asgi schema (\d+)", comment) if isinstance(comment, str) else None
    return found is not None and int(found[1]) >= VERSION


def outcome_of(channel: str, text: str) -> Position | PositionConflictError:
    """Return what an outcome of the append function says."""
    position = Position.parse(text[1:])
    return PositionConflictError(channel, position) if text.startswith("!") else position


def page_of(rows: Sequence[Row]) -> Page | None:
    """Return the page in the rows of one call of the read function; None if there is no seed yet."""
    head, *events = rows
    if head.epoch is None:
        return None
    older = _positions(head.ancestors.replace("!", ""))
    marked = head.ancestors.split(",")
    known = {head.epoch, *(position.epoch for position in older)}
    origins = [origin for origin in _positions(head.origins) if origin.epoch not in known]
    return Page(
        head.epoch,
        head.first,
        head.last,
        tuple([Record(event.number, event.payload) for event in events if event.number is not None]),
        # An origin is before the log's first event, and so before each doubtful end.
        (*older, *origins),
        tuple([ancestor.epoch for ancestor, text in zip(older, marked, strict=False) if text.endswith("!")]),
    )


def _positions(text: str) -> list[Position]:
    return [Position.parse(part) for part in text.split(",")] if text else []
