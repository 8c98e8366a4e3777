"""Django REST framework: an `authorize` that authenticates and checks permissions as an API view does.

Import it when Django is set up, as the views of the framework.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import cast

try:
    from rest_framework.authentication import BaseAuthentication
    from rest_framework.exceptions import APIException, AuthenticationFailed, NotAuthenticated
    from rest_framework.permissions import BasePermission, IsAuthenticated
    from rest_framework.request import Request
    from rest_framework.views import APIView
except ModuleNotFoundError as error:
    raise ImportError("this needs Django REST framework: pip install djangorestframework") from error

from django.core.handlers.asgi import ASGIRequest
from django.utils.functional import SimpleLazyObject

from ..grant import Authorize, Decision, Refusal, StreamRequest
from ..http.authorize import INVALID
from ..http.framework_errors import refusal_of
from .django import user_of_sync, uses_database


def authenticated(
    *,
    authenticators: Sequence[BaseAuthentication] | None = None,
    permissions: Sequence[BasePermission] | None = None,
) -> Callable[[Callable[[Request], Decision]], Authorize]:
    """Make an `authorize` of a function that takes the framework's Request of a permitted client.

        @authenticated(authenticators=[TokenAuthentication(), SessionAuthentication()])
        def authorize(request):
            user = request.user
            return Grant(channels=f"user:{user.pk}", slot_key=str(user.pk))

    Without `authenticators` those of the settings apply, and without `permissions` IsAuthenticated: the
    default of the settings, AllowAny, would call the function for everybody. SessionAuthentication gets the
    user of Django's session. Only authentication and permissions run; throttles do not.

    All of it runs in a thread, as with `uses_database`, so the function may use Django's ORM, and no
    connection is open for the stream. It may raise the framework's exceptions. A client that is not
    authenticated gets what a view answers: a 401 with the `WWW-Authenticate` of the first authenticator, or a
    403 if that has none, as SessionAuthentication. What `authenticate` returns as the second value is
    `request.auth`: a token with an end says `expires_at=request.auth["exp"]` in the Grant (simplejwt), or
    `expires_at=request.auth.expiry` (Knox).
    """

    def decorate(function: Callable[[Request], Decision]) -> Authorize:
        def authorize(stream_request: StreamRequest) -> Decision:
            view = _StreamView(authenticators, permissions)
            request = view.initialize_request(_django_request(stream_request))
            view.request = request
            try:
                view.perform_authentication(request)
                view.check_permissions(request)
                return function(request)
            except (AuthenticationFailed, NotAuthenticated) as error:
                raise _refusal(error, view.get_authenticate_header(request)) from error

        return cast("Authorize", uses_database(authorize))

    return decorate


# The framework ships no types: its class is Any to mypy.
class _StreamView(APIView):  # type: ignore[misc]
    """What authenticators and permissions see as the view."""

    def __init__(
        self,
        authenticators: Sequence[BaseAuthentication] | None,
        permissions: Sequence[BasePermission] | None,
    ) -> None:
        super().__init__()
        self.kwargs: dict[str, object] = {}
        self._authenticators = authenticators
        self._permissions = [IsAuthenticated()] if permissions is None else permissions

    def get_authenticators(self) -> list[BaseAuthentication]:
        """Return those that were given, or those of the settings."""
        if self._authenticators is None:
            return list(super().get_authenticators())
        return list(self._authenticators)

    def get_permissions(self) -> list[BasePermission]:
        """Return those that were given, or IsAuthenticated."""
        return list(self._permissions)


def _django_request(stream_request: StreamRequest) -> ASGIRequest:
    try:
        request = ASGIRequest(stream_request.scope, BytesIO())
    except UnicodeDecodeError as error:
        # Django reads the query as UTF-8, which a client need not send.
        raise Refusal(400, INVALID) from error
    request.user = SimpleLazyObject(lambda: user_of_sync(stream_request))
    return request


def _refusal(error: APIException, header: str | None) -> Refusal:
    meant = refusal_of(error)
    assert meant is not None
    if header:
        return Refusal(401, meant.detail, headers={"www-authenticate": header})
    return Refusal(403, meant.detail)
