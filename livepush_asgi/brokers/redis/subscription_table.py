"""SubscriptionTable: the mailboxes of each channel, and which subscriptions the server has confirmed. No I/O.

Each command names one channel, and a channel has at most one command under way. The server answers in order,
so each answer belongs to the oldest command. That matters for a refusal, which does not name the channel.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from redis.exceptions import AskError, ClusterDownError

from ..mailbox import Mailbox

logger = logging.getLogger("livepush_asgi")

Command = tuple[bytes, bytes]
# A cluster's node answers so if another node has the channel: no refusal. MovedError is an AskError.
_ELSEWHERE = (AskError, ClusterDownError)


class _Channel:
    """Payloads go to `mailboxes`. The mailboxes in `waiting` join them when the server confirms.

    `is_live`: the server has confirmed the subscription. `pending`: a command is under way.
    """

    __slots__ = ("is_live", "mailboxes", "pending", "waiting")

    def __init__(self) -> None:
        self.mailboxes: dict[Mailbox, None] = {}
        self.waiting: dict[Mailbox, asyncio.Future[None]] = {}
        self.is_live = self.pending = False

    @property
    def wanted(self) -> bool:
        return bool(self.mailboxes or self.waiting)

    def go_live(self) -> None:
        """Report a loss to the mailboxes of an earlier subscription, and admit the mailboxes that wait."""
        self.is_live = True
        self.each(Mailbox.lost)
        self.admit_waiting()

    def admit_waiting(self) -> None:
        for mailbox, confirmed in self.waiting.items():
            self.mailboxes[mailbox] = None
            if not confirmed.done():
                confirmed.set_result(None)
        self.waiting.clear()

    def fail_waiting(self, error: Exception) -> None:
        for confirmed in self.waiting.values():
            if not confirmed.done():
                confirmed.set_exception(error)
        self.waiting.clear()

    def each(self, call: Callable[[Mailbox], None]) -> None:
        """Call a function with each mailbox. The error of one sink does not affect the others."""
        for mailbox in tuple(self.mailboxes):
            try:
                call(mailbox)
            except Exception:
                logger.exception("the sink of channel %r raised", mailbox.channel)


class SubscriptionTable:
    """The channels of a listener. They stay in the table when the connection breaks.

    With `sharded` the commands are those of sharded pub/sub. A node of a cluster ends a subscription by
    itself when the channel moves to another node.
    """

    def __init__(self, *, sharded: bool = False) -> None:
        prefix = b"S" if sharded else b""
        self._subscribe, self._unsubscribe = prefix + b"SUBSCRIBE", prefix + b"UNSUBSCRIBE"
        self._channels: dict[bytes, _Channel] = {}
        # Channels for which a command may be due, the commands under way, and the refused channels.
        self._changed: dict[bytes, None] = {}
        self._sent: deque[Command] = deque()
        self._refused: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def wanted(self) -> bool:
        """Whether there is a mailbox."""
        return any(channel.wanted for channel in self._channels.values())

    @property
    def due(self) -> bool:
        """Whether `next_commands` may return commands."""
        return bool(self._changed)

    @property
    def settled(self) -> bool:
        """Whether no command is due or under way."""
        return not self._changed and not self._sent

    @property
    def refused(self) -> bool:
        """Whether the server refuses a channel that a mailbox wants."""
        return bool(self._refused)

    def add(self, mailbox: Mailbox, confirmed: asyncio.Future[None]) -> None:
        """Add a mailbox. It gets payloads from the moment at which `confirmed` has its result."""
        name = mailbox.channel.encode()
        channel = self._channels.setdefault(name, _Channel())
        channel.waiting[mailbox] = confirmed
        if channel.is_live and not channel.pending:
            channel.admit_waiting()
        else:
            self._changed[name] = None

    def remove(self, mailbox: Mailbox) -> None:
        """Remove a mailbox. Removing it twice is harmless."""
        name = mailbox.channel.encode()
        channel = self._channels.get(name)
        if channel is not None:
            channel.mailboxes.pop(mailbox, None)
            channel.waiting.pop(mailbox, None)
            self._note_change(name, channel)

    def next_commands(self) -> list[Command]:
        """Return the commands that are due, and note them as sent."""
        commands = []
        for name in self._changed:
            channel = self._channels[name]
            if not channel.pending and channel.wanted is not channel.is_live:
                channel.pending = True
                commands.append((self._subscribe if channel.wanted else self._unsubscribe, name))
        self._changed.clear()
        self._sent += commands
        return commands

    def confirm(self, verb: bytes, name: bytes) -> bool:
        """Take a confirmation. Return False if the server has ended a subscription by itself."""
        is_answer = self._sent and self._sent[0] == (verb, name)
        channel = self._channels.get(name)
        if not is_answer:
            if channel is not None:
                channel.is_live = False
                self._note_change(name, channel)
            return False
        self._sent.popleft()
        if channel is None:
            return True
        channel.pending = channel.is_live = False
        if verb == self._subscribe:
            self._refused.discard(name)
            channel.go_live()
        self._note_change(name, channel)
        return True

    def refuse(self, error: Exception) -> None:
        """Take the server's refusal of the oldest command. Raises the error if no command is under way."""
        if not self._sent:
            raise error
        _, name = self._sent.popleft()
        channel = self._channels[name]
        channel.pending = channel.is_live = False
        channel.fail_waiting(error)
        if channel.mailboxes and name not in self._refused:
            if not isinstance(error, _ELSEWHERE):
                logger.error("the server refuses channel %r, messages are lost: %s", name.decode(), error)
            channel.each(Mailbox.lost)
        self._refused.add(name)
        self._forget_if_unused(name, channel)

    def retry_refused(self) -> bool:
        """Subscribe refused channels again, since permissions change. Return whether there are any."""
        self._changed.update(dict.fromkeys(self._refused))
        return self.refused

    def disconnect(self) -> None:
        """Note that the connection is lost. Payloads may be lost with it."""
        self._sent.clear()
        self._refused.clear()
        for name, channel in list(self._channels.items()):
            channel.pending = channel.is_live = False
            self._note_change(name, channel)

    def fail_waiting(self, error: Exception) -> None:
        """Raise an error in all callers that wait for a confirmation."""
        for channel in self._channels.values():
            channel.fail_waiting(error)

    def deliver(self, name: bytes, payload: bytes) -> None:
        """Deliver a payload to the channel's mailboxes."""
        channel = self._channels.get(name)
        if channel is not None:
            channel.each(lambda mailbox: mailbox.deliver(payload))

    def _note_change(self, name: bytes, channel: _Channel) -> None:
        if channel.wanted is not channel.is_live:
            self._changed[name] = None
        self._forget_if_unused(name, channel)

    def _forget_if_unused(self, name: bytes, channel: _Channel) -> None:
        if not channel.wanted and not channel.is_live and not channel.pending:
            del self._channels[name]
            self._changed.pop(name, None)
            self._refused.discard(name)
