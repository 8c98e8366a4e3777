"""Publish from a terminal over HTTP, to the application of `push.publisher`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from .. import Event
from ..grant import check_channel
from ..http.publish.signature import sign
from .failure import MISTYPED, Failure, checking_arguments
from .publish import check_input, publish_input
from .redis_url import without_password

# In seconds. The application waits five for its broker.
TIMEOUT = 15.0
# How many lines one request carries, and how many bytes of them. By default a publisher takes 100 items and
# 1 MiB; JSON may need several bytes for one of a line.
MAX_LINES, MAX_BYTES = 100, 128 * 1024


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """The channel to publish on, the URL of the publisher, and how to authorize. Raises Failure."""

    channel: str
    url: str
    secret: str | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        with checking_arguments():
            check_channel(self.channel)
        try:
            url = httpx.URL(self.url)
            valid = url.scheme in ("http", "https") and bool(url.host)
        except httpx.InvalidURL:
            valid = False
        if not valid:
            example = "https://example.org/publish/"
            raise Failure(f"{without_password(self.url)!r} is not a URL such as {example}", MISTYPED)
        if self.secret is not None and self.token is not None:
            raise Failure("give --secret or --token, not both", MISTYPED)
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise Failure("a token is of ASCII characters, without a line end", MISTYPED)

    def publish_event(self, data: str, name: str | None, id: str | None) -> None:
        """Publish one event. Raises Failure."""
        item = self._item(data, name) | ({} if id is None else {"id": id})
        with checking_arguments():
            Event(data, name, id)
        with httpx.Client(timeout=TIMEOUT) as client:
            self._post(client, item)

    def publish_lines(self, name: str | None) -> tuple[int, bool]:
        """Publish an event for each line of standard input, as `publish_lines` over Redis does."""
        check_input()
        with checking_arguments():
            Event("", name)
        with httpx.Client(timeout=TIMEOUT) as client:
            # If the server is away, the command says so at once.
            self._send(client, "OPTIONS", b"")
            return publish_input(lambda lines: self._publish_together(client, lines, name))

    def _publish_together(
        self, client: httpx.Client, lines: list[str], name: str | None
    ) -> tuple[int, Exception | None]:
        published = 0
        for part in _parts(lines):
            count, error = self._publish_part(client, [self._item(line, name) for line in part])
            published += count
            if error is not None:
                return published, error
        return published, None

    def _publish_part(
        self, client: httpx.Client, items: Sequence[dict[str, object]]
    ) -> tuple[int, Exception | None]:
        try:
            self._post(client, {"items": items})
        except _RefusedError as error:
            if error.http_status == httpx.codes.REQUEST_ENTITY_TOO_LARGE and len(items) > 1:
                return self._publish_halves(client, items)
            return error.published, error
        except Failure as error:
            return 0, error
        return len(items), None

    def _publish_halves(
        self, client: httpx.Client, items: Sequence[dict[str, object]]
    ) -> tuple[int, Exception | None]:
        """Publish items that are too many for one request of this application."""
        half = len(items) // 2
        count, error = self._publish_part(client, items[:half])
        if error is not None:
            return count, error
        more, error = self._publish_part(client, items[half:])
        return count + more, error

    def _item(self, data: str, name: str | None) -> dict[str, object]:
        named = {} if name is None else {"event": name}
        return {"channel": self.channel, "data": data, **named}

    def _post(self, client: httpx.Client, content: object) -> None:
        body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        response = self._send(client, "POST", body)
        if response.is_success:
            return
        shown = without_password(self.url)
        if response.is_redirect:
            target = without_password(response.headers.get("location", ""))
            raise Failure(f"{shown} redirects to {target}: give that URL")
        raise _RefusedError(shown, response)

    def _send(self, client: httpx.Client, method: str, body: bytes) -> httpx.Response:
        headers = {"content-type": "application/json"}
        if self.token is not None:
            headers["authorization"] = f"Bearer {self.token}"
        with checking_arguments():
            if self.secret is not None:
                headers["x-signature"] = sign(self.secret, body)
        shown = without_password(self.url)
        try:
            return client.request(method, self.url, content=body, headers=headers)
        except httpx.TimeoutException:
            raise Failure(f"{shown} cannot be reached: no answer within {TIMEOUT:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise Failure(f"{shown} cannot be reached: {error}") from None


class _RefusedError(Failure):
    """Raised for an answer that is no success. `published` counts items that were published nevertheless."""

    def __init__(self, url: str, response: httpx.Response) -> None:
        self.http_status = response.status_code
        problem = _problem(response)
        detail = problem.get("detail") or response.reason_phrase
        items = problem.get("items")
        self.published = sum("id" in item for item in items) if isinstance(items, list) else 0
        super().__init__(f"{url} answers {response.status_code}: {detail}")


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _parts(lines: list[str]) -> list[list[str]]:
    """Return the lines in parts, each for one request."""
    parts: list[list[str]] = []
    size = 0
    for line in lines:
        if not parts or len(parts[-1]) == MAX_LINES or size + len(line) > MAX_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += len(line)
    return parts
