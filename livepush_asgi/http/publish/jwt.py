"""jwt_publish: an `authorize_publish` for publishers with a JWT, as those of Mercure have.

It needs PyJWT, the extra `jwt`.
"""

import re
from collections.abc import Iterable, Mapping

from ...grant import Refusal
from ..credentials.jwt import jwt_claims
from ..credentials.key_set import Key
from .request import AuthorizePublish, PublishDecision, PublishGrant, PublishRequest

# A variable of a URI template, `{id}`, and what it stands for: unreserved and percent-encoded characters.
# https://www.rfc-editor.org/rfc/rfc6570
_VARIABLE = re.compile(r"\{\w+\}")
_EXPANSION = "[A-Za-z0-9._~%-]*"


def jwt_publish(
    key: Key,
    algorithms: Iterable[str],
    *,
    audience: str | Iterable[str] | None = None,
    issuer: str | Iterable[str] | None = None,
    leeway: float = 0.0,
) -> AuthorizePublish:
    """Return an `authorize_publish` for requests with `Authorization: Bearer <JWT>`.

    The claim `mercure.publish` (the object `mercure`, its member `publish`) has the channels: names, `"*"`
    for every channel, and URI templates such as `https://example.com/books/{id}`. `exp` and `nbf` are
    checked if the token has them. The arguments are those of `jwt_claims`.
    """
    claims_of = jwt_claims(key, algorithms, audience=audience, issuer=issuer, leeway=leeway, require=())

    async def authorize_publish(request: PublishRequest) -> PublishDecision:
        selectors = _selectors(await claims_of(request))
        if not selectors:
            return Refusal(403, "The token has no claim mercure.publish with channels.")
        return PublishGrant(channels=lambda channel: any(_matches(each, channel) for each in selectors))

    return authorize_publish


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
