"""ASGI types.

Scopes and messages are plain mappings, as in Starlette, FastAPI, Litestar and Quart. Type checkers do not
accept a mutable mapping for a typed dictionary of `asgiref.typing`, nor the reverse, so `AnyASGIApp` allows
both. Only type checking needs asgiref.

https://asgi.readthedocs.io/en/latest/specs/main.html
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from asgiref.typing import ASGI3Application

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
#: The type of an application that a caller passes in. The component calls it as an ASGIApp.
AnyASGIApp: TypeAlias = "ASGIApp | ASGI3Application"
