"""Inventing stories from a seed, and shortening one that fails."""

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from livepush_asgi.process.arrivals import AT_ONCE
from livepush_asgi.wire.event import RESERVED_PREFIX

from .plan import CHANNELS, Operation, Plan, Setup
from .story import Story, tell, transcript

#: The faults of a channel in a process, and the values that each takes.
FAULTS: dict[str, tuple[Any, ...]] = {
    "subscribe": (True,),
    "read": (True,),
    "append": (True,),
    "append_unheard": (True,),
    "cut": (True,),
    "lossy": (True,),
    "repeating": (True,),
    "late": (0.05, 0.7, 5.0),
    "slow": (0.01, 0.2, 2.0),
}
#: What may happen in a story beside publishing, connecting, reading and being cut off. Each story has a few
#: of these, and some have none: only where nothing is faulty is a gap clearly false.
THEMES = (
    *FAULTS,
    "commands",
    "lost",
    "away",
    "log",
    "revoke",
    "expire",
    "stop",
    "ids",
    "past",
    "snapshot",
    "slots",
    "wave",
)


@dataclass
class Tale:
    """A story, invented or found."""

    setup: Setup
    operations: list[Operation]

    def error(self) -> str | None:
        """Tell it, and return what was wrong, None if nothing was."""
        try:
            tell(self.setup, self.operations)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def transcript(self) -> str:
        """Tell it, and return what the clients saw."""
        stories: list[Story] = []
        with suppress(Exception):
            tell(self.setup, self.operations, stories)
        return transcript(stories[0])

    def __str__(self) -> str:
        lines = "".join(f"        {operation!r},\n" for operation in self.operations)
        return f"    {self.setup!r},\n    [\n{lines}    ],"


def invent(seed: int) -> Tale:
    """Return the story of a seed."""
    return _Inventor(seed).tale()


def subscribing(tale: Tale) -> Tale:
    """Return the story with Python code in the place of each client."""
    return Tale(tale.setup, [_subscribing(operation) for operation in tale.operations])


def _subscribing(operation: Operation) -> Operation:
    match operation:
        case ("connect", client, process, Plan() as plan):
            own = replace(plan, subscriber=True, snapshot=None, slot=None, expires=None, control=True)
            return ("connect", client, process, own)
    return operation


class _Inventor:
    def __init__(self, seed: int) -> None:
        self.random = chance = random.Random(seed)
        self.themes = {theme for theme in THEMES if chance.random() < 0.2} if chance.random() < 0.9 else set()
        if "slots" in self.themes and chance.random() < 0.5:
            # What another process does to a cap shows when one of them stops.
            self.themes.add("stop")
        self.channels = CHANNELS[: chance.choice([1, 2, 2, 2, 3, 4])]
        self.setup = self._setup(seed)
        # How the clients are granted: always the same, or something else each time.
        self.fickle = chance.random() < 0.5
        self.grant = self._channels()
        self.fresh = True

    def tale(self) -> Tale:
        chance, operations = self.random, list[Operation]()
        faults = sorted(self.themes & FAULTS.keys())
        # Some are wrong from the beginning: a client that comes finds them so.
        operations += [self._thematic(theme) for theme in faults for _ in range(2) if chance.random() < 0.4]
        for _ in range(chance.randint(3, 30)):
            operations += self._scene()
        if chance.random() < 0.3:
            operations += [("cut", client, False) for client in range(self.setup.clients)]
        return Tale(self.setup, operations)

    def _scene(self) -> list[Operation]:
        """Return an operation, or a few that say more together."""
        chance = self.random
        if "wave" in self.themes and not self.fresh and chance.random() < 0.3:
            return self._wave()
        if "snapshot" in self.themes and chance.random() < 0.25:
            return self._call()
        if "log" in self.themes and chance.random() < 0.1:
            return self._opening()
        operation = self._connect() if self.fresh else self._operation()
        self.fresh = False
        if operation[0] == "connect" and chance.random() < 0.6:
            return [operation, ("read", operation[1], chance.choice([0, 1, 1, 1, 2]))]
        if operation[0] == "cut" and chance.random() < 0.5:
            return [operation, self._connect(operation[1])]
        return [operation]

    def _wave(self) -> list[Operation]:
        """Have all clients cut, and come back to one process, where they share pages of history."""
        chance, clients, process = self.random, range(self.setup.clients), self._process()
        connects = [self._connect(client) for client in clients]
        shared = connects[0][3]
        scene: list[Operation] = [("read", client, 100) for client in clients if chance.random() < 0.7]
        scene += [("cut", client, False) for client in clients]
        scene += [("publish", self._channel(), chance.choice([1, 3, 9]), process, "plain") for _ in range(2)]
        for client, (_, _, _, own) in zip(clients, connects, strict=True):
            scene.append(("connect", client, process, shared if chance.random() < 0.7 else own))
            if chance.random() < 0.7:
                # The first one reads the pages for those who come then.
                scene.append(("read", client, chance.choice([0, 1, 2, 100])))
            if chance.random() < 0.2:
                scene.append(self._operation())
        return scene

    def _call(self) -> list[Operation]:
        """Have a client come, and publish before, during and after the call of its snapshot."""
        chance, client = self.random, self._client()
        _, _, process, plan = self._connect(client)
        plan = replace(plan, snapshot=chance.choice(["sync", "slow", "slow"]))
        scene: list[Operation] = [
            ("forget", client) if chance.random() < 0.6 else ("cut", client, chance.random() < 0.3)
        ]
        if chance.random() < 0.5:
            scene.append(("publish", self._channel(), chance.choice([1, 3, 9]), self._process(), "plain"))
        scene.append(("connect", client, process, plan))
        if chance.random() < 0.8:
            # From the start of the response on the client has a claim.
            scene.append(("read", client, chance.choice([0, 1])))
        for pause in (("turns", chance.choice([1, 3, 8])), ("pass", 0.1), ("pass", 3.0)):
            scene.append(pause)
            if chance.random() < 0.6:
                how = chance.choice(["plain", "plain", "x"])
                scene.append(("publish", self._channel(), chance.choice([1, 1, 5]), self._process(), how))
            if chance.random() < 0.2:
                scene.append(self._operation())
        if chance.random() < 0.7:
            scene.append(("read", client, chance.choice([1, 2, 3, 100])))
        return scene

    def _opening(self) -> list[Operation]:
        """Have a new client leave before it has more than an id or two, and come back.

        Its log is harmed before, and perhaps meanwhile.
        """
        chance, client = self.random, self._client()
        scene: list[Operation] = []
        for _ in range(chance.choice([1, 1, 2])):
            scene += self._harmed_log()
        scene.append(("forget", client))
        for _ in range(chance.choice([1, 1, 2])):
            scene += [self._opened(client), ("read", client, chance.choice([0, 1, 1, 1, 2, 3]))]
            scene.append(("cut", client, chance.random() < 0.3))
            if chance.random() < 0.3:
                scene += self._harmed_log()
        scene.append(self._opened(client))
        return scene

    def _opened(self, client: int) -> Operation:
        """Have a client connect with any replay, and with other channels than before if that is wanted."""
        connect, name, process, plan = self._connect(client)
        return (
            connect,
            name,
            process,
            replace(plan, replay=self.random.choice(["all", "all", "last", 2, "new"])),
        )

    def _harmed_log(self) -> list[Operation]:
        chance, channel = self.random, self._channel()
        counts = chance.choice([0, 1, 3]), chance.choice([0, 0, 1, 3])
        before, after = [("publish", channel, count, self._process(), "plain") for count in counts]
        losing = chance.choice([0, 1, 1, 5])
        harm = chance.choice(["take over", "take over", "restart", "lose log"])
        loss = (harm, channel) if harm == "lose log" else (harm, channel, losing)
        return [before, loss, after]

    def _clients(self) -> int:
        if "wave" in self.themes:
            # More than may be let in at once, or fewer.
            return self.random.choice([4, 4, AT_ONCE + 4])
        return 2 if "slots" in self.themes else self.random.choice([1, 1, 2])

    def _setup(self, seed: int) -> Setup:
        chance, small = self.random, self.random.random() < 0.4
        return Setup(
            seed=seed,
            clients=self._clients(),
            overflow=chance.choice(["resume", "resume", "close", "drop_oldest", "latest"]),
            outbox_events=chance.choice([1, 2, 4]) if small else 1000,
            message_bytes=chance.choice([40, 100]) if small else 256 * 1024,
            replay_events=6 if small and chance.random() < 0.5 else 1000,
            history=chance.choice([4, 8]) if chance.random() < 0.25 else 1000,
            linger=chance.choice([0.0, 1.0, 5.0]),
            cap=chance.choice([1, 2]) if "slots" in self.themes else None,
            replace=chance.random() < 0.5,
            slot_delay=chance.choice([0.0, 0.0, 0.3, 3.0]),
            wrapped=(2,) if chance.random() < 0.2 else (),
            behind=(1,) if chance.random() < 0.7 else (0, 1, 2),
            quiet_end=chance.random() < 0.15,
            together=chance.choice([(), (), (0, 1), (0, 1, 2)]),
        )

    def _operation(self) -> Operation:
        chance = self.random
        if self.themes and chance.random() < 0.35:
            return self._thematic(chance.choice(sorted(self.themes)))
        match chance.choices(range(7), [30, 25, 15, 18, 5, 7, 1])[0]:
            case 0:
                count = chance.choice([1, 1, 2, 3, 9])
                how = chance.choice(["plain", "plain", "plain", "x", "y", "retry"])
                return ("publish", self._channel(), count, self._process(), how)
            case 1:
                return ("read", self._client(), chance.choice([0, 1, 1, 2, 3, 100]))
            case 2:
                return ("cut", self._client(), chance.random() < 0.3)
            case 3:
                return self._connect()
            case 4:
                return ("turns", chance.choice([1, 2, 3, 5, 8]))
            case 5:
                return ("pass", chance.choice([0.1, 0.6, 3.0, 30.0]))
            case _:
                return ("forget", self._client())

    def _thematic(self, theme: str) -> Operation:
        chance = self.random
        if theme in FAULTS:
            if chance.random() < 0.3:
                return ("heal", self._process())
            value = chance.choice(FAULTS[theme])
            return ("fault", theme, self._process(), self._channel(), value)
        match theme:
            case "commands":
                if chance.random() < 0.4:
                    return ("heal", self._process())
                return ("fault", chance.choice(["cut", "subscribe"]), self._process(), RESERVED_PREFIX, True)
            case "lost":
                return ("say lost", self._process())
            case "away":
                return ("away", chance.random() < 0.5)
            case "log":
                what = chance.choice(["lose log", "restart", "take over"])
                losing = () if what == "lose log" else (chance.choice([0, 0, 1, 5]),)
                return (what, self._channel(), *losing)
            case "revoke":
                key = chance.choice(["one", "two", None])
                channel = self._channel() if key is None or chance.random() < 0.2 else None
                return ("disconnect", self._process(), key, channel)
            case "stop":
                return (chance.choice(["stop", "start", "drain"]), self._process())
            case "ids":
                how = chance.choice(["own id", "own id", "empty id", "cursor id", "position id"])
                return ("publish", self._channel(), 1, self._process(), how)
            case "past":
                return ("publish", self._channel(), 1, self._process(), "past")
            case "snapshot":
                return ("listen", self._client()) if chance.random() < 0.3 else ("calm",)
            case _:
                return ("turns", 3)

    def _connect(self, client: int | None = None) -> Operation:
        chance = self.random
        keyed = "slots" in self.themes or "revoke" in self.themes
        plan = Plan(
            channels=self._channels() if self.fickle else self.grant,
            replay=chance.choice(["new", "new", "new", "last", "all", 2]),
            snapshot=chance.choice([None, "sync", "sync", "slow", "raises", "hangs"])
            if "snapshot" in self.themes
            else None,
            blocks=chance.choice([1, 3]),
            slot=chance.choice(["one", "one", "two"]) if keyed else None,
            expires=chance.choice([None, 0.1, 1.0, 10.0]) if "expire" in self.themes else None,
            control=chance.random() < 0.92,
            window=chance.choice([64, 64, 1, 0]),
            authorize=chance.choice([0.0, 0.0, 0.1, 2.0, None]) if keyed or "stop" in self.themes else 0.0,
        )
        return ("connect", self._client() if client is None else client, self._process(), plan)

    def _channels(self) -> tuple[str, ...]:
        chance = self.random
        return tuple(chance.sample(self.channels, chance.randint(1, len(self.channels))))

    def _channel(self) -> str:
        return self.random.choice(self.channels)

    def _client(self) -> int:
        return self.random.randrange(self.setup.clients)

    def _process(self) -> int:
        return self.random.randrange(self.setup.processes)


def shorten(tale: Tale, tries: int = 600) -> Tale:
    """Return a shorter and simpler story that is wrong in the same way."""
    wrong = _kind(tale.error())
    left = [tries]

    def is_wrong(candidate: Tale) -> bool:
        left[0] -= 1
        return left[0] > 0 and _kind(candidate.error()) == wrong

    while left[0] > 0:
        simpler = next((other for other in _simpler(tale) if left[0] > 0 and is_wrong(other)), None)
        if simpler is None:
            break
        tale = simpler
    return tale


def _kind(error: str | None) -> str | None:
    """Return an error without what differs from story to story."""
    return error and "".join(character for character in error if not character.isdigit())[:60]


def _simpler(tale: Tale) -> Iterator[Tale]:
    operations, setup = tale.operations, tale.setup
    size = len(operations)
    while size:
        for start in range(0, len(operations), size):
            yield Tale(setup, operations[:start] + operations[start + size :])
        size //= 2
    plain = Setup(seed=setup.seed)
    for name in [
        field.name for field in fields(Setup) if getattr(setup, field.name) != getattr(plain, field.name)
    ]:
        yield Tale(replace(setup, **{name: getattr(plain, name)}), operations)
    for place, operation in enumerate(operations):
        for other in _simpler_operations(operation):
            yield Tale(setup, [*operations[:place], other, *operations[place + 1 :]])


def _simpler_operations(operation: Operation) -> Iterator[Operation]:
    match operation:
        case ("connect", client, process, Plan() as plan):
            for name in [f.name for f in fields(Plan) if getattr(plan, f.name) != f.default]:
                yield ("connect", client, process, replace(plan, **{name: getattr(Plan(), name)}))
            if len(plan.channels) > 1:
                for channel in plan.channels:
                    fewer = tuple(name for name in plan.channels if name != channel)
                    yield ("connect", client, process, replace(plan, channels=fewer))
            if process:
                yield ("connect", client, 0, plan)
        case ("publish", channel, int(count), process, how):
            if count > 1:
                yield ("publish", channel, 1, process, how)
                yield ("publish", channel, count - 1, process, how)
            if process:
                yield ("publish", channel, count, 0, how)
            if how in ("x", "y", "retry"):
                yield ("publish", channel, count, process, "plain")
        case ("read", client, int(blocks)) if blocks > 1:
            yield ("read", client, 1)
