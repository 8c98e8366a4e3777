"""The settings of a story, as values whose `repr` can be pasted into `found.py`."""

from dataclasses import dataclass, fields
from typing import Any

from livepush_asgi.grant import Replay
from livepush_asgi.settings import Overflow

CHANNELS = ("a", "b", "c", "d")

#: One step of a story: a name, and what it needs.
Operation = tuple[Any, ...]


class Terse:
    """Shows in its `repr` only what differs from the defaults."""

    def __repr__(self) -> str:
        given = [
            f"{field.name}={value!r}"
            for field in fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass(frozen=True, repr=False, kw_only=True)
class Setup(Terse):
    """What holds for all of a story."""

    seed: int = 0
    processes: int = 3
    clients: int = 1
    overflow: Overflow = "resume"
    outbox_events: int = 1000
    message_bytes: int = 256 * 1024
    replay_events: int = 1000
    #: How many events each log keeps.
    history: int = 1000
    linger: float = 1.0
    #: The slots of each key, None for no cap, and whether the newest stream wins. A cap is shared by all.
    cap: int | None = None
    replace: bool = False
    slot_delay: float = 0.0
    #: The processes whose broker is wrapped, and those that stand behind a middleware.
    wrapped: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    #: The processes to which the live payloads of one turn of the event loop come together.
    together: tuple[int, ...] = ()
    #: Whether the end is silent, so that only the component's own look into the log can find a loss.
    quiet_end: bool = False


@dataclass(frozen=True, repr=False, kw_only=True)
class Plan(Terse):
    """How a client connects, and what it is granted."""

    channels: tuple[str, ...] = ("a",)
    replay: Replay = "new"
    #: None, or how the callback behaves: "sync", "slow", "raises", "hangs".
    snapshot: str | None = None
    blocks: int = 1
    slot: str | None = None
    #: In how many seconds from the decision the grant ends.
    expires: float | None = None
    control: bool = True
    window: float = 64
    #: How long `authorize` takes, in seconds, or None if it raises.
    authorize: float | None = 0.0
    #: Whether Python code reads the stream, by `subscribe`. Then nobody authorizes it.
    subscriber: bool = False
