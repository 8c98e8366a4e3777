"""Session: what is said on one connection to NATS, from its opening to its end."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nats.aio.msg import Msg

from ...loop import start_task
from .connection import Connection, TooLongError, no_answer
from .posts import Post, Posts
from .routes import Route, Routes

# Makes of a message what mailboxes get; None is not for them. It must not raise.
Decode = Callable[[Msg], bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for the server, in seconds.

    A connection is asked for a sign of life every `ping_interval`, and given up when none comes within
    `ping_timeout`; so much has a new connection to become ready, too. One that nobody needs is kept for
    `linger`, so that a program that only publishes does not connect each time.
    """

    subscribe_timeout: float = 2.0
    publish_timeout: float = 5.0
    ping_interval: float = 10.0
    ping_timeout: float = 5.0
    linger: float = 10.0

    def __post_init__(self) -> None:
        for name in ("subscribe_timeout", "publish_timeout", "ping_interval", "ping_timeout", "linger"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is in seconds and more than 0, not {getattr(self, name)!r}")


class Session:
    """Subscribes what is wanted and sends what was posted, until the connection breaks or nobody needs it."""

    def __init__(
        self, connection: Connection, routes: Routes, posts: Posts, patience: Patience, decode: Decode
    ) -> None:
        self._connection = connection
        self._routes = routes
        self._posts = posts
        self._patience = patience
        self._decode = decode
        self._over = False
        self._inbox = ""
        # The server's word on what is being subscribed to, by the subject in lower case.
        self._refused: dict[str, Exception | None] = {}

    @property
    def version(self) -> tuple[int, int]:
        """The server's version."""
        return self._connection.version

    async def open(self) -> list[str]:
        """Connect, and return the other servers of the cluster."""
        try:
            await self._connection.open(self._patience.ping_timeout, self._refuse)
        except TimeoutError as error:
            raise (error if str(error) else no_answer(self._patience.ping_timeout)) from error
        return self._connection.others

    async def run(self, on_settled: Callable[[], None]) -> None:
        """Serve. Raises one of FAILURES when the connection breaks, returns when it was not needed."""
        tasks = [
            start_task(self._watch(), "livepush nats watch"),
            start_task(self._write(), "livepush nats publisher"),
            start_task(self._tell(on_settled), "livepush nats subscriber"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # From here on nothing is delivered, and nothing new is sent.
            self._over = True
            self._connection.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def aclose(self) -> None:
        """Close what is left. Whoever waits for an answer is told that none will come."""
        self._over = True
        try:
            await self._connection.aclose()
        finally:
            self._routes.disconnect()
            self._posts.fail_sent(self._connection.fault)

    async def _watch(self) -> None:
        patience = self._patience
        clock = asyncio.get_running_loop().time
        needed = asked = clock()
        while True:
            if len(self._routes) or self._posts.pending:
                needed = clock()
            elif clock() - needed >= patience.linger:
                # No message leaves from here on: it would be cut off with the connection.
                self._over = True
                return
            if await self._connection.wait_closed(min(patience.ping_interval, patience.linger)):
                raise self._connection.fault
            if clock() - asked >= patience.ping_interval:
                await self._connection.confirm(patience.ping_timeout)
                self._routes.ask_again()
                asked = clock()

    async def _write(self) -> None:
        while True:
            self._posts.posted.clear()
            posts = [] if self._over else self._posts.take_next()
            if not posts:
                await self._posts.posted.wait()
                continue
            for post in posts:
                await self._send(post)
            if any(post.token is None for post in posts):
                await self._connection.confirm(self._patience.ping_timeout)
            self._posts.land()

    async def _send(self, post: Post) -> None:
        message = post.message
        if post.token is not None:
            if not self._inbox:
                inbox = self._connection.new_inbox()
                await self._connection.subscribe(f"{inbox}.*", self._posts.take_answer)
                self._inbox = inbox
            message = message._replace(reply=f"{self._inbox}.{post.token}")
        try:
            await self._connection.publish(message)
        except TooLongError as error:
            post.fail(error)

    async def _tell(self, on_settled: Callable[[], None]) -> None:
        while True:
            self._routes.changed.clear()
            for subscription in self._routes.take_given_up():
                await subscription.unsubscribe()
            routes = self._routes.take_wanted()
            if routes:
                await self._subscribe(routes)
            else:
                on_settled()
                await self._routes.changed.wait()

    async def _subscribe(self, routes: Sequence[Route]) -> None:
        self._refused = dict.fromkeys(route.subject.lower() for route in routes)
        for route in routes:
            # By now it may have been given up.
            if route.wanted:
                route.subscription = await self._connection.subscribe(route.subject, self._taker(route))
        await self._connection.confirm(self._patience.ping_timeout)
        for route in routes:
            if route.subscription is not None:
                self._routes.settle(route, self._refused[route.subject.lower()])
        self._refused = {}

    def _taker(self, route: Route) -> Callable[[Msg], None]:
        def take(message: Msg) -> None:
            payload = None if self._over else self._decode(message)
            if payload is not None:
                route.deliver(payload)

        return take

    def _refuse(self, kind: str, subject: str, error: Exception) -> None:
        if kind != "subscription":
            self._posts.refuse(subject, error)
        elif subject in self._refused:
            self._refused[subject] = error
        else:
            self._routes.refuse(subject, error)
