"""FastAPI: an event stream as the response of a path operation, and an `authorize` made of dependencies.

Either way a stream begins when the dependencies have ended, so none of them, such as a database session,
lives as long as a stream.
"""

from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Unpack, cast
from weakref import WeakKeyDictionary

try:
    from fastapi import Depends, FastAPI, HTTPException, Request, Response, params
    from fastapi.dependencies.models import Dependant
    from fastapi.dependencies.utils import get_dependant, get_parameterless_sub_dependant, solve_dependencies
    from fastapi.exceptions import RequestValidationError
except ModuleNotFoundError as error:
    raise ImportError("this needs FastAPI: pip install 'livepush_asgi[fastapi]'") from error

from starlette.types import Message, Receive, Scope, Send

from ..app.generator import SourceTerms, open_source
from ..app.livepush import LivePush
from ..app.run import Run
from ..app.service import refusal_headers
from ..errors import AuthorizeError
from ..grant import Authorize, Decision, Refusal, StreamRequest
from .route import RouteStream, StreamService, StreamTerms, open_for_route, open_run
from .starlette import EventStreamResponse as StarletteResponse
from .starlette import without_body

#: The detail of a 422 has no more characters.
MAX_DETAIL = 500
NO_APPLICATION = (
    "depends(...) needs the FastAPI application of the request, for its dependencies and overrides: mount "
    "the LivePush (`app.mount('/events', push)`), add the middleware to the application "
    "(`app.add_middleware(LivePushMiddleware, push=push)`), or open the stream in a path operation"
)
SWALLOWED = (
    "a dependency with `yield` has swallowed an exception, so there is no decision: raise it again in its "
    "`except` block"
)


class EventStreamResponse(StarletteResponse):
    """A response that ends the request's `yield` dependencies before its stream begins.

    FastAPI keeps them open until a response was sent, so a database session would be held for as long as
    its stream lives. https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/

    `@app.get("/stream", response_class=EventStreamResponse)` has the OpenAPI document say that the path
    operation answers with `text/event-stream`.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """End the dependencies, then send the stream."""
        dependencies = scope.get("fastapi_inner_astack")
        if isinstance(dependencies, AsyncExitStack):
            try:
                await dependencies.aclose()
            except BaseException:
                await self.stream.body.aclose()
                raise
        await super().__call__(scope, receive, send)


async def sse_streaming_response(
    service: StreamService, request: Request, **terms: Unpack[StreamTerms]
) -> EventStreamResponse:
    """Open a stream and return it as the response of a path operation.

    The terms are a `channel` (and a `slot_key`), a `grant`, or an `authorize`: see StreamTerms. Raises
    HTTPException: 429 when the cap is full, 503 when the slots or the broker are away, 401 for a grant that
    has expired, or what `authorize` refuses with. A soft refusal is a response.
    """
    return EventStreamResponse(await _opened(open_for_route(service, request.scope, **terms)))


async def run_response(
    push: LivePush,
    request: Request,
    run: Run,
    *,
    slot_key: str | None = None,
    expires_at: datetime | float | None = None,
) -> Response:
    """Return a run, `push.run(id, dialect=...)`, as the response of a path operation.

    The caller has decided that the client may read it. The client gets the output from the beginning, or
    from its last event id, then the end, and the response ends. It gets the status `dialect.idle`, such as
    204, where there is no such run and where it has all of it. The stream takes a slot of `slot_key`, and
    ends at `expires_at`. Raises HTTPException: 429 when the cap is full, 503 when the slots or the
    broker are away, 401 for `expires_at` in the past. A soft refusal is a response; a dialect without control
    events gets none. Raises ValueError for a run of another LivePush.
    """
    opening = open_run(push, request.scope, run, slot_key=slot_key, expires_at=expires_at)
    try:
        return EventStreamResponse(await _opened(opening))
    except HTTPException as error:
        return without_body(error)


async def event_stream_response(
    request: Request, source: AsyncIterable[object], **terms: Unpack[SourceTerms]
) -> StarletteResponse:
    """Return the events of an async iterator as the response of a path operation, without a broker.

    `source` yields Events, or data for one as `publish` takes it: `yield {"n": 1}` sends JSON. It runs no
    further than the client takes: while a send waits, it produces one event more. It is closed when it ends
    or raises, when the client leaves or takes nothing for `Timing.send_timeout`, and in a drain. Its
    `finally` may then await for 3 seconds. For the terms (`push`, `slot_key`, `expires_at`,
    `control_events`) see SourceTerms. Raises HTTPException: 429 when the cap is full, 503 when the slots are
    away, 401 for `expires_at` in the past. A soft refusal is a response. The request's `yield` dependencies
    end after the source was closed, so that it may use them.
    """
    return StarletteResponse(await _opened(open_source(request.scope, source, **terms)))


async def _opened(opening: Awaitable[RouteStream]) -> RouteStream:
    try:
        return await opening
    except Refusal as refusal:
        raise HTTPException(refusal.status, refusal.detail, refusal_headers(refusal)) from refusal


def depends(dependency: Callable[..., object] | params.Depends) -> Authorize:
    """Return an `authorize` that resolves a dependency of FastAPI. Its value is the Grant or the Refusal.

        def my_stream(user: Annotated[User, Depends(current_user)]) -> Grant:
            return Grant(channels=f"user:{user.id}", slot_key=str(user.id))

        push = LivePush(broker, depends(my_stream))
        app.mount("/events", push)

    The dependency may take what a path operation takes, apart from a body: other dependencies, security
    schemes, the Request, parameters of the path, the query, headers and cookies. To give it scopes, pass
    `Security(my_stream, scopes=[...])`. `app.dependency_overrides` applies.

    FastAPI leaves out the `dependencies=` of an application and of its routers where something is mounted.
    This function resolves them first, so one that denies denies the stream.

    The tree is resolved whenever the stream is authorized, and ended before the stream begins. An
    HTTPException keeps its status and headers. A parameter that is missing or wrong is a 422. A dependency
    with `yield` that raises at its end denies the stream. `Timing.authorize_timeout` is for all of it.
    Background tasks run when the tree has ended. What a dependency sets in its Response is dropped, and
    exception handlers of the application are not called: an exception that is not an HTTPException is a 500.

    Raises TypeError for a dependency that reads a body.
    """
    return _Dependencies(dependency)


class _Dependencies:
    """An `authorize` that resolves a tree of dependencies and ends it."""

    def __init__(self, dependency: Callable[..., object] | params.Depends) -> None:
        wanted = dependency if isinstance(dependency, params.Depends) else Depends(dependency)

        def decide(decision: object = wanted) -> None:
            """Never called: FastAPI reads its signature."""

        self._decide = decide
        # An application has one tree for each place where the LivePush is mounted.
        self._trees: WeakKeyDictionary[FastAPI, dict[object, Dependant]] = WeakKeyDictionary()
        # A signature that FastAPI does not understand raises where the programmer made it.
        _check_reads_no_body(get_dependant(path="", call=decide))

    async def __call__(self, stream_request: StreamRequest) -> Decision:
        app = stream_request.scope.get("app")
        if not isinstance(app, FastAPI):
            raise AuthorizeError(NO_APPLICATION)
        # A copy: what FastAPI keeps in the scope is of one call, and a stream is authorized more than once.
        request = Request(dict(stream_request.scope), _receive_nothing)
        try:
            return await self._solve(app, request)
        except RequestValidationError as error:
            raise Refusal(422, _detail(error)) from None

    async def _solve(self, app: FastAPI, request: Request) -> Decision:
        tree, decided = self._tree(app, request), False
        async with AsyncExitStack() as of_request, AsyncExitStack() as of_function:
            request.scope["fastapi_inner_astack"] = of_request
            request.scope["fastapi_function_astack"] = of_function
            solved = await solve_dependencies(
                request=request,
                dependant=tree,
                dependency_overrides_provider=app,
                async_exit_stack=of_request,
                embed_body_fields=False,
            )
            if solved.errors:
                raise RequestValidationError(solved.errors)
            decided = True
        if not decided:
            raise AuthorizeError(SWALLOWED)
        if solved.background_tasks is not None:
            await solved.background_tasks()
        return cast("Decision", solved.values["decision"])

    def _tree(self, app: FastAPI, request: Request) -> Dependant:
        # By the path FastAPI knows which parameters are in it. That of a mount is not in the scope.
        path = "".join(f"/{{{name}}}" for name in request.path_params)
        # The router that has the mount, in a FastAPI that includes the mounts of routers. It lives as long as
        # the application.
        router = request.scope.get("fastapi", {}).get("included_router")
        trees, place = self._trees.setdefault(app, {}), (path, id(router))
        if place not in trees:
            tree = get_dependant(path=path, call=self._decide)
            around = list(app.router.dependencies)
            if router is not None:
                # No public names: where FastAPI has renamed them, the error denies the stream.
                around += [*router.include_context.dependencies, *router.original_router.dependencies]
            tree.dependencies[:0] = [
                get_parameterless_sub_dependant(depends=each, path=path) for each in around
            ]
            _check_reads_no_body(tree)
            trees[place] = tree
        return trees[place]


def _check_reads_no_body(tree: Dependant) -> None:
    for field in tree.body_params:
        name = getattr(tree.call, "__qualname__", tree.call)
        raise TypeError(
            f"the dependency {name} reads {field.name!r} from a body, and a request for a stream has none: "
            "take it from the query, a header or a cookie"
        )
    for dependency in tree.dependencies:
        _check_reads_no_body(dependency)


def _detail(error: RequestValidationError) -> str:
    """Return what is wrong, as text. The values that the client sent are not repeated."""
    wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return "; ".join(wrong)[:MAX_DETAIL]


async def _receive_nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
