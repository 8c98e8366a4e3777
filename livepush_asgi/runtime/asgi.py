"""ASGI types.

Scopes and messages are plain mappings, as Starlette, FastAPI, Litestar and Quart type them: the typed
dictionaries of `asgiref.typing` are compatible with no mapping that can be changed, in neither direction.
An application may be typed either way. asgiref is needed for type checking only.

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
#: What is taken from a caller. It is called as an ASGIApp.
AnyASGIApp: TypeAlias = "ASGIApp | ASGI3Application"
