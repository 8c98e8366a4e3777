"""jwt_publish: an `authorize_publish` for publishers with a JWT, as those of Mercure have.

It needs PyJWT, the extra `jwt`.
"""

import re
from collections.abc import Iterable, Mapping

import jwt

from ...grant import Refusal
from .request import AuthorizePublish, PublishDecision, PublishGrant, PublishRequest

Key = str | bytes | jwt.PyJWK
# A variable of a URI template, `{id}`, and what it stands for: unreserved and percent-encoded characters.
# https://www.rfc-editor.org/rfc/rfc6570
_VARIABLE = re.compile(r"\{\w+\}")
_EXPANSION = "[A-Za-z0-9._~%-]*"


def jwt_publish(
    key: Key,
    algorithms: Iterable[str],
    *,
    audience: str | Iterable[str] | None = None,
    issuer: str | None = None,
) -> AuthorizePublish:
    """Return an `authorize_publish` for requests with `Authorization: Bearer <JWT>`.

    The claim `mercure.publish` (the object `mercure`, its member `publish`) has the channels: names, `"*"`
    for every channel, and URI templates such as `https://example.com/books/{id}`. `exp` and `nbf` are
    checked if the token has them, `aud` and `iss` if `audience` and `issuer` are given. `key` and
    `algorithms` are those of `jwt.decode` of PyJWT.
    """
    if isinstance(algorithms, str):
        raise TypeError(f"algorithms is a list, not one str: [{algorithms!r}]")
    names = list(algorithms)
    if not names or any(name.lower() == "none" for name in names):
        raise ValueError('algorithms names those of the key, such as ["HS256"]; "none" would admit everybody')
    if not isinstance(key, jwt.PyJWK):
        for name in names:
            _check_key(key, name)
    audiences = audience if audience is None or isinstance(audience, str) else list(audience)

    def authorize_publish(request: PublishRequest) -> PublishDecision:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return _refusal("Authorize with a bearer token.", "Bearer")
        try:
            claims = jwt.decode(token.strip(), key, algorithms=names, audience=audiences, issuer=issuer)
        except jwt.PyJWTError:
            return _refusal("The token is invalid or has expired.", 'Bearer error="invalid_token"')
        except ValueError:
            # PyJWT raises it for some tokens with a broken header.
            return _refusal("The token is invalid.", 'Bearer error="invalid_token"')
        selectors = _selectors(claims)
        if not selectors:
            return Refusal(403, "The token has no claim mercure.publish with channels.")
        return PublishGrant(channels=lambda channel: any(_matches(each, channel) for each in selectors))

    return authorize_publish


def _check_key(key: str | bytes, algorithm: str) -> None:
    try:
        jwt.get_algorithm_by_name(algorithm).prepare_key(key)
    except (jwt.PyJWTError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"algorithms names {algorithm!r}, which the key does not fit: {error}") from error


def _selectors(claims: Mapping[str, object]) -> list[str]:
    mercure = claims.get("mercure")
    found = mercure.get("publish") if isinstance(mercure, dict) else None
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _matches(selector: str, channel: str) -> bool:
    if selector in ("*", channel):
        return True
    if _VARIABLE.search(selector) is None:
        return False
    first, *between, last = map(re.escape, _VARIABLE.split(selector))
    # Where a variable can end is tried once, at the first place: a long name takes no quadratic time.
    pattern = first + "".join([f"(?>{_EXPANSION}?{text})" for text in between]) + _EXPANSION + last
    return re.fullmatch(pattern, channel) is not None


def _refusal(detail: str, challenge: str) -> Refusal:
    return Refusal(401, detail, headers={"www-authenticate": challenge})
