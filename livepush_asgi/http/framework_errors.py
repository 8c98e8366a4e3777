"""Translates the HTTP errors of frameworks into refusals, without importing a framework."""

import json
from collections.abc import Iterable, Mapping

from ..grant import Refusal

# Classes whose status is in `status_code`, by module and name.
_STATUS_CODE = {
    "starlette.exceptions.HTTPException",
    "litestar.exceptions.http_exceptions.HTTPException",
    "rest_framework.exceptions.APIException",
}
_WERKZEUG = "werkzeug.exceptions.HTTPException"
# The exceptions of Django have no status; its request handler assigns these.
_DJANGO = {
    "django.core.exceptions.PermissionDenied": 403,
    "django.http.response.Http404": 404,
    "django.core.exceptions.BadRequest": 400,
    "django.core.exceptions.SuspiciousOperation": 400,
}
# Header fields that describe the body which the framework would have sent.
_BODY_HEADERS = frozenset({"content-type", "content-length", "content-encoding", "transfer-encoding"})


def refusal_of(error: Exception) -> Refusal | None:
    """Return the refusal for an HTTP error of a framework, or None for any other exception.

    Raises ValueError for an HTTP error that is no refusal, such as a redirect.
    """
    for kind in type(error).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name in _STATUS_CODE:
            return _refusal(error, _attribute(error, "status_code"), _attribute(error, "detail"))
        if name == _WERKZEUG:
            response = _attribute(error, "response")
            status = _attribute(error, "code") if response is None else _attribute(response, "status_code")
            return _refusal(error, status, _attribute(error, "description"))
        if name in _DJANGO:
            # The text of a 404 names the model, and must not reach the client.
            detail = str(error) if name.endswith("PermissionDenied") else None
            return _refusal(error, _DJANGO[name], detail)
    return None


def _refusal(error: Exception, status: object, detail: object) -> Refusal:
    if not isinstance(status, int):
        raise ValueError(f"{type(error).__name__} has no status")
    if detail is not None and not isinstance(detail, str):
        detail = json.dumps(detail, default=str)
    headers = {name: value for name, value in _headers(error) if name not in _BODY_HEADERS}
    retry_after = headers.get("retry-after", "")
    seconds = int(headers.pop("retry-after")) if retry_after.isascii() and retry_after.isdigit() else None
    return Refusal(status, detail or None, retry_after=seconds, headers=headers)


def _headers(error: Exception) -> Iterable[tuple[str, str]]:
    get_headers = _attribute(error, "get_headers")
    found = get_headers() if callable(get_headers) else _attribute(error, "headers")
    pairs = found.items() if isinstance(found, Mapping) else found or ()
    assert isinstance(pairs, Iterable)
    return [(str(name).lower(), str(value)) for name, value in pairs]


def _attribute(value: object, name: str) -> object:
    return getattr(value, name, None)
