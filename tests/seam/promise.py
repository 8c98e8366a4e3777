"""What a client may expect: section 1 of the design as plain code that knows nothing of the component.

A client has a *claim* to every event of a channel from the moment it receives an event id on a stream that
was granted the channel, until a later stream of the client is granted without it. Each claimed event arrives
once and in order, or a gap of its channel arrives at that place. Who comes without a position and asks for
"all" has a claim to every event of the log.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum


class PromiseBroken(AssertionError):
    """Raised when a client saw what it should not have seen, or did not see what it should have."""


class Fate(Enum):
    """What became of an event after the server had taken it."""

    KEPT = "kept"
    #: Its publisher was told that the server is away. It may be there and may not.
    UNCERTAIN = "uncertain"
    #: A server that started again has not got it, and nobody can know. Nobody has to be told.
    FORGOTTEN = "forgotten"
    #: A server that took over has not got it, and the log says so at the place.
    DOUBTFUL = "doubtful"


@dataclass
class Published:
    """One event of a channel."""

    tick: int
    time: float
    name: str = "message"
    fate: Fate = Fate.KEPT
    lost_at: int = 0


class Ledger:
    """All that was published on one channel. Events are numbered 1, 2, 3 ... in the order of the log."""

    def __init__(self) -> None:
        self.events: list[Published] = []
        #: The last number before the present log: who asks for all of it has a claim to what came then.
        self.before_log = 0
        #: The numbers that the present log has had, the newest last.
        self.in_log: list[int] = []

    @property
    def count(self) -> int:
        return len(self.events)

    def add(self, event: Published) -> None:
        self.events.append(event)
        self.in_log.append(self.count)

    def of(self, number: int) -> Published:
        return self.events[number - 1]

    def lose_log(self) -> None:
        """Take note that the log is gone, and that another one begins."""
        self.in_log.clear()
        self.before_log = self.count

    def lose(self, count: int, fate: Fate, tick: int) -> None:
        """Take note that the newest events of the log are gone."""
        gone = self.in_log[len(self.in_log) - count :] if count else []
        self.in_log = self.in_log[: len(self.in_log) - count]
        for number in gone:
            self.of(number).fate = fate
            self.of(number).lost_at = tick


@dataclass
class Claim:
    """One client's place in one channel."""

    #: It has a claim to the events with larger numbers, None if it has no claim yet.
    floor: int | None = None
    #: The last number that it received.
    last: int = 0
    #: Whether a gap was told since, and when the last one was.
    gap: bool = False
    gap_tick: int = -1
    #: Whether it was told on a stream with a snapshot, which has to bring what is missing.
    gap_owes: bool = False
    #: Whether a replay may begin again below `last`: the client has come without a place in this channel.
    fresh: bool = True
    #: What is missing and told of, and not yet part of a state that the client has had whole.
    missing: set[int] = field(default_factory=set)
    #: Up to where a state that the client has had whole has brought it.
    covered: int = 0
    #: What gave way to a newer event of its name, which has still to come: number by name.
    outdated: dict[str, int] = field(default_factory=dict)


class Promise:
    """What one client may expect, over all its streams."""

    def __init__(self, ledgers: dict[str, Ledger], *, latest: bool) -> None:
        self._ledgers = ledgers
        self._latest = latest
        self.claims = {channel: Claim() for channel in ledgers}
        #: Whether the client was promised a state that it has not had whole.
        self.owed = False

    def forget(self) -> None:
        """Begin anew, as a page that is loaded again."""
        self.claims = {channel: Claim() for channel in self._ledgers}
        self.owed = False

    def open(self, channels: Iterable[str], *, known: bool, mute: bool) -> None:
        """Begin a stream. `known` says whether the client brought an id of the component's.

        An event may come a second time where the client brings no place in the channel: no id at all, an id
        of a publisher's own, or a channel that it was not granted before. Its replay begins anew then.
        A client without control events (`mute`) is told by the end of its stream, and so of all of them.
        """
        granted = set(channels)
        for channel, claim in self.claims.items():
            if channel not in granted:
                claim.floor = None
                claim.missing.clear()
                claim.outdated.clear()
            elif not known or claim.floor is None:
                claim.fresh = True
            if channel in granted:
                claim.gap = mute or (claim.gap and claim.floor is not None)
                claim.gap_owes = claim.gap_owes and not mute

    def start(self, channel: str, floor: int) -> None:
        """Begin a claim to all events above `floor`, unless there is one."""
        claim = self.claims[channel]
        if claim.floor is None:
            claim.floor = floor

    def gap(self, channel: str, tick: int, *, owes: bool) -> None:
        """Hear that events of the channel are missing here. The stream may owe the client its state."""
        claim = self.claims[channel]
        claim.gap, claim.gap_tick, claim.gap_owes = True, tick, owes
        claim.outdated.clear()

    def event(self, channel: str, number: int, floor: int | None) -> None:
        """Receive an event. `floor` is that of a claim which holds for this stream alone."""
        claim = self.claims[channel]
        if number <= claim.last and not claim.fresh:
            raise PromiseBroken(f"{channel} {number} came twice or out of order, after {claim.last}")
        floor = floor if claim.floor is None else claim.floor
        if floor is not None:
            self._hole(channel, range(max(floor, claim.last) + 1, number), number)
        name = self._ledgers[channel].of(number).name
        claim.outdated.pop(name, None)
        claim.last, claim.gap, claim.fresh = number, False, False

    def end(self, channel: str) -> None:
        """Check that nothing is missing behind the last event."""
        claim, count = self.claims[channel], self._ledgers[channel].count
        if claim.floor is None:
            return
        self._hole(channel, range(max(claim.floor, claim.last) + 1, count + 1), count + 1)
        if claim.outdated and not claim.gap:
            raise PromiseBroken(f"of {channel} nothing newer came than {claim.outdated}, which was left out")

    def state(self, up_to: dict[str, int]) -> None:
        """Receive the last block of a state that has all events up to these."""
        self.owed = False
        for channel, number in up_to.items():
            claim = self.claims[channel]
            claim.covered = max(claim.covered, number)
            claim.missing = {missing for missing in claim.missing if missing > claim.covered}

    def check_state(self, channels: Iterable[str], when: str) -> None:
        """Check that the client has had its state whole, and with it all that gaps told of."""
        if self.owed:
            raise PromiseBroken(f"the client has not had its state whole, {when}")
        for channel in channels:
            if missing := self.claims[channel].missing:
                raise PromiseBroken(
                    f"no state has brought what a gap of {channel} told of: {missing}, {when}"
                )

    def _hole(self, channel: str, numbers: range, before: int) -> None:
        claim, ledger = self.claims[channel], self._ledgers[channel]
        for number in numbers:
            event = ledger.of(number)
            if event.fate in (Fate.UNCERTAIN, Fate.FORGOTTEN):
                continue
            if claim.gap and not (claim.gap_owes and number > claim.covered):
                continue
            if event.fate is Fate.DOUBTFUL and claim.gap_tick > event.lost_at:
                # A gap that is told after the loss is the word of it, if what is left is behind the gap.
                continue
            if self._latest:
                # A newer event of the same name has taken its place, and has to come.
                claim.outdated[event.name] = number
            elif claim.gap:
                claim.missing.add(number)
            else:
                raise PromiseBroken(f"{channel} {number} is missing before {before}, and nothing tells of it")
