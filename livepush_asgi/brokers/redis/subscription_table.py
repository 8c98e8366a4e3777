"""Roster: who listens to which channel, and how far the server has been told. No input or output here.

Confirmations come one for each channel of each command, in the order of the commands. So a channel is
in force when its last command was SUBSCRIBE and each SUBSCRIBE of it on this connection is confirmed,
whatever was closed and opened again meanwhile.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable

from redis.exceptions import AskError, ClusterDownError

from ..mailbox import Mailbox

logger = logging.getLogger("livepush_asgi")

# So many channels go into one command: 10,000 channels are ten commands and not 10,000. In a cluster those
# of one command must have the same slot.
CHANNELS_PER_COMMAND = 1000

Command = tuple[bytes, ...]
# A node's answer that another one is meant. Who listens goes there; it is no refusal. MovedError is one.
ELSEWHERE = (AskError, ClusterDownError)


class _Channel:
    """`mailboxes` get what is published; those in `waiting` do from the confirmation on."""

    __slots__ = ("asked", "denied", "interrupted", "mailboxes", "unconfirmed", "waiting")

    def __init__(self) -> None:
        self.mailboxes: dict[Mailbox, None] = {}
        self.waiting: dict[Mailbox, asyncio.Future[None]] = {}
        self.asked = False
        self.unconfirmed = 0
        self.interrupted = False
        self.denied = False

    @property
    def wanted(self) -> bool:
        return bool(self.mailboxes or self.waiting)

    @property
    def in_force(self) -> bool:
        return self.asked and not self.unconfirmed

    def attach_waiting(self) -> None:
        for mailbox, confirmed in self.waiting.items():
            self.mailboxes[mailbox] = None
            if not confirmed.done():
                confirmed.set_result(None)
        self.waiting.clear()


class _Sent:
    __slots__ = ("names", "pending", "verb")

    def __init__(self, verb: bytes, names: list[bytes]) -> None:
        self.verb = verb
        self.names = names
        self.pending = len(names)


class Roster:
    """The channels of one listening connection, over all the times that it is made anew.

    `sharded` is for the channels of a cluster, each of which is one node's. The node withdraws the
    subscription by itself when the channel becomes another one's.
    """

    def __init__(self, *, sharded: bool = False) -> None:
        self._subscribe = b"SSUBSCRIBE" if sharded else b"SUBSCRIBE"
        self._unsubscribe = b"SUNSUBSCRIBE" if sharded else b"UNSUBSCRIBE"
        self._most = 1 if sharded else CHANNELS_PER_COMMAND
        self._channels: dict[bytes, _Channel] = {}
        self._unsettled: dict[bytes, None] = {}
        self._refused: dict[bytes, None] = {}
        self._sent: deque[_Sent] = deque()

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return any(channel.wanted for channel in self._channels.values())

    @property
    def settled(self) -> bool:
        """Whether the server was told all there is to tell, and has answered."""
        return not self._unsettled and not self._sent

    @property
    def refused(self) -> bool:
        """Whether the server refuses a channel that somebody listens to."""
        return bool(self._refused)

    def add(self, mailbox: Mailbox, confirmed: asyncio.Future[None]) -> None:
        """Let a mailbox listen from the moment on at which `confirmed` has its result."""
        name = mailbox.channel.encode()
        channel = self._channels.setdefault(name, _Channel())
        channel.waiting[mailbox] = confirmed
        if channel.in_force:
            channel.attach_waiting()
        else:
            self._unsettled[name] = None

    def remove(self, mailbox: Mailbox) -> None:
        """Let a mailbox listen no more, if it did."""
        name = mailbox.channel.encode()
        channel = self._channels.get(name)
        if channel is None:
            return
        channel.mailboxes.pop(mailbox, None)
        channel.waiting.pop(mailbox, None)
        self._unsettled[name] = None
        self._forget_if_done(name, channel)

    def next_commands(self) -> list[Command]:
        """Return what the server has to be told by now; it counts as told."""
        verbs: dict[bytes, list[bytes]] = {self._unsubscribe: [], self._subscribe: []}
        unsettled, self._unsettled = self._unsettled, {}
        for name in unsettled:
            channel = self._channels.get(name)
            if channel is None or channel.wanted is channel.asked:
                continue
            channel.asked = channel.wanted
            channel.unconfirmed += channel.asked
            verbs[self._subscribe if channel.asked else self._unsubscribe].append(name)
            self._forget_if_done(name, channel)
        return [command for verb, names in verbs.items() for command in self._commands(verb, names)]

    def confirm(self, verb: bytes, name: bytes) -> bool:
        """Take the server's confirmation of one channel of the oldest command.

        Return False if it is no confirmation: the server has withdrawn a subscription by itself.
        """
        if verb == self._unsubscribe and not self._awaits(verb, name):
            self._withdraw(name)
            return False
        self._count_down()
        channel = self._channels.get(name)
        if verb != self._subscribe or channel is None:
            return True
        channel.unconfirmed -= 1
        self._refused.pop(name, None)
        if channel.in_force:
            channel.denied = False
            if channel.interrupted:
                channel.interrupted = False
                _each(channel.mailboxes, Mailbox.lost)
            channel.attach_waiting()
        self._forget_if_done(name, channel)
        return True

    def refuse(self, error: Exception) -> None:
        """Take the server's refusal of the oldest command.

        It says nothing about which of several channels was meant, so each is asked for alone then.
        """
        if not self._sent:
            raise error
        sent = self._sent.popleft()
        if sent.verb != self._subscribe:
            return
        for name in sent.names:
            channel = self._channels[name]
            channel.unconfirmed -= 1
            channel.asked = channel.asked and channel.unconfirmed > 0
            self._refused[name] = None
            if len(sent.names) == 1:
                self._deny(name, channel, error)
            else:
                self._unsettled[name] = None
            self._forget_if_done(name, channel)

    def ask_again(self) -> None:
        """Have the refused channels asked for once more; permissions change."""
        self._unsettled.update(self._refused)

    def disconnect(self) -> None:
        """Forget all that was told: the connection is gone, and messages with it."""
        self._sent.clear()
        self._refused.clear()
        for name, channel in list(self._channels.items()):
            channel.asked = False
            channel.unconfirmed = 0
            channel.interrupted = bool(channel.mailboxes)
            self._unsettled[name] = None
            self._forget_if_done(name, channel)

    def fail_waiting(self, error: Exception) -> None:
        """Raise for all who wait for a confirmation."""
        for channel in self._channels.values():
            _fail(channel, error)

    def deliver(self, name: bytes, payload: bytes) -> None:
        """Pass on what was published."""
        channel = self._channels.get(name)
        if channel is not None:
            _each(channel.mailboxes, lambda mailbox: mailbox.deliver(payload))

    def _commands(self, verb: bytes, names: list[bytes]) -> Iterable[Command]:
        alone = [name for name in names if name in self._refused]
        together = [name for name in names if name not in self._refused]
        groups = [[name] for name in alone]
        for start in range(0, len(together), self._most):
            groups.append(together[start : start + self._most])
        for group in groups:
            self._sent.append(_Sent(verb, group))
            yield (verb, *group)

    def _awaits(self, verb: bytes, name: bytes) -> bool:
        return bool(self._sent) and self._sent[0].verb == verb and name in self._sent[0].names

    def _withdraw(self, name: bytes) -> None:
        channel = self._channels.get(name)
        if channel is not None:
            channel.asked = channel.unconfirmed > 0
            channel.interrupted = bool(channel.mailboxes)
            self._unsettled[name] = None
            self._forget_if_done(name, channel)

    def _count_down(self) -> None:
        if self._sent:
            self._sent[0].pending -= 1
            if not self._sent[0].pending:
                self._sent.popleft()

    def _deny(self, name: bytes, channel: _Channel, error: Exception) -> None:
        _fail(channel, error)
        if channel.mailboxes and not channel.denied:
            channel.denied = channel.interrupted = True
            if not isinstance(error, ELSEWHERE):
                logger.error("the server refuses channel %r, messages are lost: %s", name.decode(), error)
            _each(channel.mailboxes, Mailbox.lost)

    def _forget_if_done(self, name: bytes, channel: _Channel) -> None:
        if not channel.wanted and not channel.asked and not channel.unconfirmed:
            del self._channels[name]
            self._unsettled.pop(name, None)
            self._refused.pop(name, None)


def _fail(channel: _Channel, error: Exception) -> None:
    for confirmed in channel.waiting.values():
        if not confirmed.done():
            confirmed.set_exception(error)
    channel.waiting.clear()


def _each(mailboxes: Iterable[Mailbox], act: Callable[[Mailbox], None]) -> None:
    """Do something to each mailbox. A fault behind one of them must not cost the others anything."""
    for mailbox in tuple(mailboxes):
        try:
            act(mailbox)
        except Exception:
            logger.exception("the sink of channel %r raised", mailbox.channel)
