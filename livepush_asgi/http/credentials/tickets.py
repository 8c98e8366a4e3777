"""Tickets: each opens one stream, for clients that cannot send a header or a cookie."""

import re
import secrets
from abc import ABC, abstractmethod
from collections import OrderedDict
from hashlib import sha256

from ...grant import Refusal, StreamRequest
from ...runtime.event_loop import now
from ...settings import check_seconds

QUERY = "ticket"
TTL = 30.0
# A ticket is used at once. A longer time is most likely in milliseconds.
MAX_TTL = 600
# How many tickets a process keeps. One more, and the oldest is forgotten.
MAX_TICKETS = 100_000
_TICKET = re.compile(r"[A-Za-z0-9_-]{43}")
# Where the scope of a request keeps what its ticket was issued for.
_REDEEMED = "livepush_asgi.ticket"
_CHALLENGE = {"www-authenticate": "Ticket"}


class Tickets(ABC):
    """Tickets, each of which opens one stream. MemoryTickets and RedisTickets are such, and one of your own.

    A view of the application that knows its user calls `issue`, and the page opens the stream with
    `?ticket=`; there `authorize` calls `redeem`. A ticket is valid for `ttl` seconds, and once: whoever finds
    it in an access log is refused. So is `EventSource` when it comes back by itself, as it repeats the URL:
    a page asks for a ticket for each stream.

    A store has `put` and `take`. It gets a digest in place of the ticket.
    """

    def __init__(self, *, ttl: float = TTL) -> None:
        check_seconds("ttl", ttl, MAX_TTL)
        self.ttl = ttl

    async def issue(self, subject: str) -> str:
        """Return a new ticket for a user, or for a session: `redeem` returns this text.

        Call it in the answer to a POST, which no cache keeps.
        """
        if not isinstance(subject, str) or not subject:
            raise ValueError(f"a ticket is issued for the id of a user or a session, not {subject!r:.100}")
        ticket = secrets.token_urlsafe(32)
        await self.put(_digest(ticket), subject)
        return ticket

    async def redeem(self, request: StreamRequest) -> str:
        """Use up the ticket of a request, and return what it was issued for.

        Called again for the same request, as after a revocation, it returns the same. What may have been
        taken away since the ticket was issued, such as the session, is for `authorize` to look up. Raises
        Refusal, a 401, without a ticket and for one that is unknown, was used or has expired.
        """
        redeemed = request.scope.get(_REDEEMED)
        if redeemed is not None and redeemed[0] is self:
            return str(redeemed[1])
        given = request.query_all(QUERY)
        if not given:
            raise Refusal(401, f"Open the stream with ?{QUERY}=.", headers=_CHALLENGE)
        subject = None
        if len(given) == 1 and _TICKET.fullmatch(given[0]):
            subject = await self.take(_digest(given[0]))
        if subject is None:
            raise Refusal(401, "The ticket was used or has expired.", headers=_CHALLENGE)
        request.scope[_REDEEMED] = self, subject
        return subject

    @abstractmethod
    async def put(self, key: str, subject: str) -> None:
        """Store a text for `ttl` seconds. A key is never used again."""

    @abstractmethod
    async def take(self, key: str) -> str | None:
        """Remove the text of a key and return it, or None. Of two calls at once, one gets it."""


def _digest(ticket: str) -> str:
    return sha256(ticket.encode()).hexdigest()


class MemoryTickets(Tickets):
    """Tickets in this process: for one worker. RedisTickets is for several.

    It keeps 100,000 tickets at most; one more, and the oldest is forgotten.
    """

    def __init__(self, *, ttl: float = TTL) -> None:
        super().__init__(ttl=ttl)
        # The subject of each ticket, and when it expires; the next one to expire is the first.
        self._tickets: OrderedDict[str, tuple[str, float]] = OrderedDict()

    async def put(self, key: str, subject: str) -> None:
        """Store a text for `ttl` seconds."""
        moment = now()
        while self._tickets:
            _, expires_at = next(iter(self._tickets.values()))
            if expires_at > moment and len(self._tickets) < MAX_TICKETS:
                break
            self._tickets.popitem(last=False)
        self._tickets[key] = subject, moment + self.ttl

    async def take(self, key: str) -> str | None:
        """Remove the text of a key and return it, or None."""
        subject, expires_at = self._tickets.pop(key, (None, 0.0))
        return subject if now() < expires_at else None
