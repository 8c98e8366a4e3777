"""Link: the one connection of a broker to NATS. Opened when it is needed, made again for as long as it is."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nats.aio.msg import Msg

from ...loop import asyncio_loop, start_task
from ..backoff import Backoff
from ..mailbox import Mailbox
from .connection import FAILURES, Connection, Outgoing, address_of, check_options, no_answer, unavailable
from .posts import Post, Posts
from .routes import Routes
from .session import Decode, Patience, Session

logger = logging.getLogger("livepush_asgi")


class Link:
    """Subscribes, publishes and asks. `decode` makes of a message what mailboxes get."""

    def __init__(
        self, servers: str | Sequence[str], options: Mapping[str, Any], patience: Patience, decode: Decode
    ) -> None:
        self._servers = [servers] if isinstance(servers, str) else list(servers)
        if not self._servers or not all(isinstance(url, str) and url for url in self._servers):
            raise ValueError(f"servers are a URL or several, not {servers!r}")
        #: Those of the cluster that the configured ones have told of.
        self._discovered: list[str] = []
        self._options = check_options(options)
        self.patience = patience
        self.address = address_of(self._servers)
        self._decode = decode
        self._backoff = Backoff()
        self._routes = Routes()
        self._posts = Posts()
        self._task: asyncio.Task[None] | None = None
        self._session: Session | None = None
        self._turn = 0
        self._fault: BaseException | None = None
        self._lost_at: float | None = None
        #: How many connections there have been, for whoever has learned something of the server on one.
        self.generation = 0

    @property
    def healthy(self) -> bool:
        """Whether the connection is up and every subscription confirmed, or none is needed."""
        return not len(self._routes) or (self._session is not None and self._routes.settled)

    @property
    def version(self) -> tuple[int, int]:
        """The version of the server that is connected, (0, 0) if none is."""
        return self._session.version if self._session is not None else (0, 0)

    async def listen(self, subject: str, mailbox: Mailbox) -> None:
        """Let a mailbox listen. Returns when the server has confirmed it.

        Raises BrokerUnavailableError if it does not; then, and when cancelled, nothing stays behind.
        """
        self._start()
        confirmed = asyncio.get_running_loop().create_future()
        self._routes.add(subject, mailbox, confirmed)
        timeout = self.patience.subscribe_timeout
        try:
            async with asyncio.timeout(timeout):
                await confirmed
        except FAILURES as error:
            self.leave(subject, mailbox)
            raise self.unavailable("subscribe", self._told(error, timeout)) from error
        except BaseException:
            self.leave(subject, mailbox)
            raise

    def leave(self, subject: str, mailbox: Mailbox) -> None:
        """Let a mailbox listen no more. Leaving twice is harmless."""
        self._routes.remove(subject, mailbox)

    async def publish(self, message: Outgoing) -> None:
        """Send a message, and return when the server has taken it. Raises one of FAILURES."""
        self._start()
        await self._wait_for(self._posts.add(message))

    async def ask(self, message: Outgoing, *, many: bool = False) -> list[Msg]:
        """Send a request and return the answer. Raises one of FAILURES."""
        self._start()
        return await self._wait_for(self._posts.ask(message, many=many))

    def unavailable(self, attempt: str, cause: BaseException) -> Exception:
        """Return the error to raise when an attempt has failed."""
        return unavailable(attempt, self.address, cause)

    async def _wait_for(self, post: Post) -> list[Msg]:
        timeout = self.patience.publish_timeout
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        try:
            while not post.answered.done():
                await asyncio.wait({post.answered}, timeout=max(0.0, until - loop.time()))
                if post.sent_at is not None:
                    # The deadline is about the server, and not about the length of the queue.
                    until = post.sent_at + timeout
                elif self._session is not None:
                    # Either its turn comes, or the connection is given up.
                    until = loop.time() + timeout
                if not post.answered.done() and loop.time() >= until:
                    raise self._told(TimeoutError(), timeout)
            return post.answered.result()
        finally:
            post.answered.cancel()

    def _told(self, error: BaseException, timeout: float) -> BaseException:
        # A deadline raises a TimeoutError without a word.
        if isinstance(error, TimeoutError) and not str(error):
            return self._fault or no_answer(timeout)
        return error

    @property
    def _needed(self) -> bool:
        return bool(len(self._routes) or self._posts.pending)

    def _start(self) -> None:
        loop = asyncio_loop()
        if self._task is not None and self._task.get_loop() is not loop:
            if not self._task.get_loop().is_closed():
                raise RuntimeError("a NATS broker is used on one event loop at a time; make one for each")
            # That loop has gone without a word, and those who listened with it.
            self._reset()
        if self._task is None:
            self._backoff.reset()
            self._task = start_task(self._run(), "livepush nats link")

    def _reset(self) -> None:
        self._routes, self._posts = Routes(), Posts()
        self._session = self._task = None
        self._fault = self._lost_at = None

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            while self._needed:
                try:
                    await self._hold_connection()
                except FAILURES as error:
                    self._note_lost(error)
                except Exception as error:
                    # A fault of this package. It must be heard of, and it must not end the listening.
                    logger.exception("the connection to %s failed, reconnecting", self.address)
                    self._note_lost(error)
                else:
                    continue
                await self._pause()
        finally:
            # The finalizer of a task that an earlier loop left behind comes here too, and is not meant.
            if self._task is task:
                ended = ConnectionAbortedError("the event loop has ended")
                self._routes.fail_waiting(ended)
                self._posts.fail(ended)
                self._reset()

    async def _hold_connection(self) -> None:
        """Connect and serve until the connection breaks, or returns when nobody has needed it for a while."""
        servers = [*self._servers, *self._discovered]
        session = Session(
            Connection(servers[self._turn % len(servers)], self._options),
            self._routes,
            self._posts,
            self.patience,
            self._decode,
        )
        try:
            await self._open(session)
            await session.run(self._note_settled)
        except BaseException:
            # The next attempt is at the next server.
            self._turn += 1
            raise
        finally:
            self._session = None
            await session.aclose()

    async def _open(self, session: Session) -> None:
        try:
            others = await session.open()
        except Exception as error:
            # All who wait to publish would only wait for the same again.
            self._posts.fail(error)
            raise
        self._discovered = [url for url in others if url not in self._servers]
        self.generation += 1
        self._session = session

    async def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._backoff.next_delay()
        while self._needed and loop.time() < until:
            self._routes.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._routes.changed.wait()

    def _note_lost(self, error: BaseException) -> None:
        self._fault = error
        if self._lost_at is None and len(self._routes):
            self._lost_at = time.monotonic()
            logger.warning("no connection to %s, trying until it works: %s", self.address, error)

    def _note_settled(self) -> None:
        self._fault = None
        self._backoff.reset()
        if self._lost_at is not None:
            away = time.monotonic() - self._lost_at
            self._lost_at = None
            count = len(self._routes)
            logger.warning("connected to %s again after %.1f s, %d channels", self.address, away, count)
