"""Posts: what is to be sent on one connection, and who waits for the server to have taken it or to answer.

No input or output here, and no deadlines: who waits says for how long.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

from nats.aio.msg import Msg

from .connection import Outgoing

# Bounds of one flight, so that its deadline is about the server and not about the length of the queue.
MOST_MESSAGES = 1000
MOST_BYTES = 1_000_000


class Post:
    """One message. `token` names the answer to it; without one, `answered` only tells that it was taken."""

    __slots__ = ("_many", "_parts", "answered", "message", "sent_at", "token")

    def __init__(self, message: Outgoing, token: str | None, many: bool) -> None:
        self.message = message
        self.token = token
        #: When it left, by the loop's clock.
        self.sent_at: float | None = None
        self.answered: asyncio.Future[list[Msg]] = asyncio.get_running_loop().create_future()
        self._many = many
        self._parts: list[Msg] = []

    def take(self, part: Msg) -> bool:
        """Take a part of the answer, and return whether it was the last one."""
        self._parts.append(part)
        if self._many and "Status" not in (part.headers or {}):
            return False
        self.finish(self._parts)
        return True

    def finish(self, answer: list[Msg]) -> None:
        """Give whoever waits the answer."""
        if not self.answered.done():
            self.answered.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Raise for whoever waits."""
        if not self.answered.done():
            self.answered.set_exception(error)


class Posts:
    """The posts of one connection, in the order in which they were made."""

    def __init__(self) -> None:
        #: Set whenever one is added. It belongs to the event loop, as the posts do.
        self.posted = asyncio.Event()
        self._waiting: deque[Post] = deque()
        self._flying: list[Post] = []
        self._asked: dict[str, Post] = {}
        self._number = 0

    @property
    def pending(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting or self._flying or self._asked)

    def add(self, message: Outgoing) -> Post:
        """Queue a message. Its answer is an empty list, when the server has taken it.

        Cancel `answered` and the message is not sent, if it has not left yet.
        """
        return self._add(Post(message, None, False))

    def ask(self, message: Outgoing, *, many: bool) -> Post:
        """Queue a request. Its answer is one message, or `many` up to one with a status."""
        self._number += 1
        post = Post(message, f"{self._number:x}", many)
        post.answered.add_done_callback(lambda _: self._asked.pop(post.token or "", None))
        return self._add(post)

    def take_next(self) -> list[Post]:
        """Return the posts to send next; those that wait for an answer are known by their tokens now."""
        posts: list[Post] = []
        size = 0
        now = asyncio.get_running_loop().time()
        while self._waiting and len(posts) < MOST_MESSAGES and size < MOST_BYTES:
            post = self._waiting.popleft()
            if post.answered.done():
                continue
            posts.append(post)
            post.sent_at = now
            size += len(post.message.payload)
            if post.token is not None:
                self._asked[post.token] = post
        self._flying = posts
        return posts

    def land(self) -> None:
        """Take note that the server has taken what `take_next` returned last."""
        flown, self._flying = self._flying, []
        for post in flown:
            if post.token is None:
                post.finish([])

    def refuse(self, subject: str, error: Exception) -> None:
        """Raise for all whose message the server refuses, by its subject in lower case."""
        fail_each([post for post in self._sent if post.message.subject.lower() == subject], error)

    def take_answer(self, message: Msg) -> None:
        """Give an answer to whoever waits for it. Its token is the last word of its subject."""
        post = self._asked.get(message.subject.rpartition(".")[2])
        if post is not None:
            post.take(message)

    def fail_sent(self, error: Exception) -> None:
        """Raise for all whose message is on its way or waits for an answer."""
        sent, self._flying = self._sent, []
        fail_each(sent, error)

    def fail(self, error: Exception) -> None:
        """Raise for all who wait."""
        waiting, self._waiting = self._waiting, deque()
        fail_each(waiting, error)
        self.fail_sent(error)

    def _add(self, post: Post) -> Post:
        self._waiting.append(post)
        self.posted.set()
        return post

    @property
    def _sent(self) -> list[Post]:
        return [*self._flying, *self._asked.values()]


def fail_each(posts: Iterable[Post], error: Exception) -> None:
    """Raise for all who wait for these."""
    for post in posts:
        post.fail(error)
