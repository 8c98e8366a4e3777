"""jwt_claims: a function that `authorize` calls, which checks the JWT of a request and returns its claims.

It needs PyJWT, the extra `jwt`.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

import jwt

from ...grant import LATEST, Refusal, StreamRequest
from .key_set import Key, verifying_keys

# A header field of a server is no longer than this by default.
MAX_TOKEN = 8 * 1024
# No clock is further off. A longer leeway is most likely in milliseconds.
MAX_LEEWAY = 600
MISSING = "Authorize with a bearer token."
INVALID = "The token is invalid or has expired."
AMBIGUOUS = "The request has several tokens."
# PyJWT raises these for a token that it cannot read: its own errors, and at times those of `int` and `json`.
_WRONG = (jwt.PyJWTError, ValueError, OverflowError, RecursionError)


# Any: what the members of a claim are is agreed between the issuer and the application. PyJWT says Any too.
class Claims(dict[str, Any]):
    """The claims of a token: a dictionary, as PyJWT returns it, and the end of the token."""

    #: `exp` and the leeway, in seconds since the epoch, for `Grant(expires_at=)`. None without `exp`.
    expires_at: float | None = None


def jwt_claims(
    key: Key,
    algorithms: Iterable[str],
    *,
    audience: str | Iterable[str] | None = None,
    issuer: str | Iterable[str] | None = None,
    leeway: float = 0.0,
    require: Iterable[str] = ("exp", "sub"),
    cookie: str | None = None,
    query: str | None = None,
) -> Callable[[StreamRequest], Awaitable[Claims]]:
    """Return a function that checks the JWT of a request and returns its claims, for use in `authorize`.

        claims_of = jwt_claims(SECRET, ["HS256"], cookie="__Host-token")

        async def authorize(request):
            claims = await claims_of(request)
            return Grant(channels=f"user:{claims['sub']}", expires_at=claims.expires_at)

    The token is in the header `Authorization: Bearer ...`, or else in the parameter `query` of the URL or in
    the `cookie`, if they are named. A URL is written into access logs, with its token.

    `key` is the secret, the public key as PEM, a `PyJWK`, a key set (the dictionary of a JWKS document), or a
    function, async or not, that fetches one; a plain function is called in a thread. A fetched set is
    kept, and fetched again after 5 minutes and for an unknown key id, then at most every 10 seconds.
    `algorithms` are those that the issuer signs with; the token does not choose. `aud` and `iss` are checked
    if `audience` and `issuer` are given; a token with `aud` is refused if no `audience` is. `exp` and `nbf`
    are checked with `leeway` seconds of tolerance. A token without one of the claims in `require` is refused.

    The function raises a Refusal, which `authorize` lets pass: 401 without a token or with a wrong one, with
    `WWW-Authenticate: Bearer`, and 400 for two cookies of that name with different tokens. It raises
    AuthorizationUnavailableError, a 503, if the key set is needed and cannot be fetched.
    """
    if isinstance(algorithms, str):
        raise TypeError(f"algorithms is a list, not one str: [{algorithms!r}]")
    names = list(algorithms)
    if not names or any(name.lower() == "none" for name in names):
        raise ValueError('algorithms names those of the key, such as ["HS256"]; "none" would admit everybody')
    if not 0 <= leeway <= MAX_LEEWAY:
        raise ValueError(f"leeway is in seconds, from 0 to {MAX_LEEWAY}, not {leeway!r}")
    keys = verifying_keys(key, names)
    audiences, issuers, required = _names(audience), _names(issuer), list(require)

    async def claims_of(request: StreamRequest) -> Claims:
        token = _token_of(request, cookie, query)
        try:
            header = jwt.get_unverified_header(token)
            algorithm: str = header.get("alg", "")
            found = None
            if algorithm in names:
                found = await keys.find(header.get("kid"), algorithm)
            if found is None:
                raise _invalid()
            claims = Claims(
                jwt.decode(
                    token,
                    found,
                    algorithms=[algorithm],
                    audience=audiences,
                    issuer=issuers,
                    leeway=leeway,
                    options={"require": required},
                )
            )
            if "exp" in claims:
                claims.expires_at = min(int(claims["exp"]) + leeway, LATEST)
        except _WRONG:
            raise _invalid() from None
        return claims

    return claims_of


def _names(value: str | Iterable[str] | None) -> str | Collection[str] | None:
    return value if value is None or isinstance(value, str) else list(value)


def _token_of(request: StreamRequest, cookie: str | None, query: str | None) -> str:
    """Return the token of a request. Raises Refusal for none, for several, and for one that is too long."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    # The header of another scheme is for somebody else, such as a proxy with a password.
    found = {token.strip()} if scheme.lower() == "bearer" else set()
    if not found and query is not None:
        found = set(request.query_all(query))
    if not found and cookie is not None:
        # Another host of the same site can add a cookie of the same name to the user's own.
        found = set(request.cookies_all(cookie))
    found.discard("")
    if len(found) > 1:
        raise Refusal(400, AMBIGUOUS, headers={"www-authenticate": 'Bearer error="invalid_request"'})
    if not found:
        raise Refusal(401, MISSING, headers={"www-authenticate": "Bearer"})
    if len(token := found.pop()) > MAX_TOKEN:
        raise _invalid()
    return token


def _invalid() -> Refusal:
    return Refusal(401, INVALID, headers={"www-authenticate": 'Bearer error="invalid_token"'})
