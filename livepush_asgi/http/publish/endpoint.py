"""PublishEndpoint: handles one request of a publisher, from its method to its answer."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

from ...errors import NotRunningError
from ...grant import Refusal
from ...process.process import Process
from ...runtime.asgi import ASGIApp, Receive, Scope, Send
from ...runtime.callbacks import ClientLeftError
from ...runtime.failure_log import FailureLog, fields
from ...settings import check_whole
from ...wire.encode import Encode
from ..authorize import Decider
from ..driver import DISCONNECT_ERRORS
from ..responses import answer, refuse
from .content import FORM, JSON, Content, Reader, media_type
from .publishing import RETRY_AFTER, Answer, Problem, Publish, Publishing
from .request import AuthorizePublish, Bodies, PublishGrant, PublishRequest

ALLOWED = "POST, OPTIONS"
# The status that nginx logs for a client that has disconnected.
CLIENT_CLOSED_REQUEST = 499
NOT_PUBLISHED = "The server is restarting. Nothing was published."
CROSS_ORIGIN = "Pages of another origin may not publish."
TYPES = f"The body is {JSON} or {FORM}, without a Content-Encoding."


class PublishEndpoint:
    """The ASGI application of `LivePush.publisher`. It passes lifespan and WebSockets on to `push`."""

    def __init__(
        self,
        push: ASGIApp,
        publish: Publish,
        current_process: Callable[[], Awaitable[Process | None]],
        authorize_publish: AuthorizePublish,
        *,
        keeps_history: bool,
        encode: Encode | None,
        authorize_timeout: float,
        max_body: int,
        max_batch: int,
        body_timeout: float,
    ) -> None:
        if not callable(authorize_publish):
            raise TypeError(
                "authorize_publish is a function that returns a PublishGrant or a Refusal, not "
                f"{authorize_publish!r:.100}; for a shared secret: hmac_publish(...)"
            )
        check_whole("max_batch", max_batch)
        self._push = push
        self._current_process = current_process
        self._bodies = Bodies(max_body, body_timeout)
        self._reader = Reader(encode, max_batch)
        self._publishing = Publishing(publish, keeps_history=keeps_history)
        # An `authorize_publish` may read the body.
        self._decider = Decider(
            authorize_publish, (), authorize_timeout + body_timeout, PublishGrant, "authorize_publish"
        )
        self._failures = FailureLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http":
            await self._push(scope, receive, send)
            return
        request = PublishRequest(scope, receive, self._bodies)
        with suppress(*DISCONNECT_ERRORS):
            try:
                await self._answer(request, send)
            except Refusal as refusal:
                await _refuse(refusal, request, send)
            except ClientLeftError:
                await refuse(send, Refusal(CLIENT_CLOSED_REQUEST), [])
            finally:
                request.discard_body()

    async def _answer(self, request: PublishRequest, send: Send) -> None:
        method = request.scope["method"]
        if request.is_foreign:
            raise Refusal(404)
        if method == "OPTIONS":
            await answer(send, 204, [(b"allow", ALLOWED.encode())])
            return
        if method != "POST":
            raise Refusal(405, headers={"allow": ALLOWED})
        kind = _checked_head(request)
        self._bodies.check_length(request.headers.get("content-length", ""))
        key = request.idempotency_key
        try:
            result = await self._publish(request, kind, key)
        except NotRunningError:
            raise Refusal(503, NOT_PUBLISHED, retry_after=1) from None
        except (Refusal, ClientLeftError):
            raise
        except Exception as error:
            self._failures.log(
                logging.ERROR,
                "publishing over HTTP failed; the publisher got a 500",
                error=error,
                extra=fields("http_publish_failed"),
            )
            raise Refusal(500) from None
        headers = [(b"content-type", result.media_type), (b"cache-control", b"no-store")]
        await answer(send, 200, headers, result.content)

    async def _publish(self, request: PublishRequest, kind: str, key: str | None) -> Answer:
        process = await self._current_process()
        if process is None:
            raise NotRunningError("this LivePush has stopped")
        grant = await self._decider.decide(request, process)
        # The body counts until its events are published: a slow broker holds no more than slow clients.
        content = self._reader.read(kind, await request.body())
        _check_channels(grant, content)
        return await self._publishing.publish(content, key)


def _checked_head(request: PublishRequest) -> str:
    """Return the media type of the body. Raises Refusal."""
    if _is_cross_origin(request):
        raise Refusal(403, CROSS_ORIGIN)
    kind = media_type(request.headers.get("content-type", ""))
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if kind not in (JSON, FORM) or encoding != "identity":
        raise Refusal(415, TYPES, headers={"accept": f"{JSON}, {FORM}"})
    return kind


def _is_cross_origin(request: PublishRequest) -> bool:
    """Return whether a page of another origin sends the request, with the cookies of its visitor.

    A form needs no preflight. Programs that are no browsers send neither of the two header fields.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    except ValueError:
        return True


def _check_channels(grant: PublishGrant, content: Content) -> None:
    for publication in content.publications:
        if not grant.allows(publication.channel):
            raise Refusal(403, f"You may not publish to {publication.channel!r:.100}.")


async def _refuse(refusal: Refusal, request: PublishRequest, send: Send) -> None:
    # To a stream's client a 204 is a refusal; to a publisher it would be a success.
    if refusal.status == 204:
        refusal = Refusal(403, refusal.detail)
    if refusal.status == 503 and refusal.retry_after is None:
        # A publisher repeats a 503, and has to know when.
        refusal.retry_after = RETRY_AFTER
    headers = []
    # The rest of a slow body is not waited for. HTTP/2 has no such field.
    if refusal.status == 408 and str(request.scope.get("http_version", "")).startswith("1"):
        headers.append((b"connection", b"close"))
    members = refusal.members if isinstance(refusal, Problem) else {}
    await refuse(send, refusal, headers, body=request.scope["method"] != "HEAD", members=members)
