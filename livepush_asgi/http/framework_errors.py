"""Translates the HTTP errors of frameworks into refusals, without importing a framework."""

import json
from collections.abc import Mapping

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
            return _refusal(error, getattr(error, "status_code", None), getattr(error, "detail", None))
        if name == _WERKZEUG:
            status = getattr(error, "code", None)
            status = getattr(getattr(error, "response", None), "status_code", status)
            return _refusal(error, status, getattr(error, "description", None))
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
    get_headers = getattr(error, "get_headers", None)
    found = get_headers() if callable(get_headers) else getattr(error, "headers", None)
    pairs = found.items() if isinstance(found, Mapping) else found or ()
    headers = {str(name).lower(): str(value) for name, value in pairs}
    headers = {name: value for name, value in headers.items() if name not in _BODY_HEADERS}
    retry_after = headers.get("retry-after", "")
    seconds = int(headers.pop("retry-after")) if retry_after.isascii() and retry_after.isdigit() else None
    return Refusal(status, detail or None, retry_after=seconds, headers=headers)
