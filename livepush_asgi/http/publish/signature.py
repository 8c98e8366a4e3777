"""hmac_publish: an `authorize_publish` for publishers that share a secret with the application."""

import hmac
import re
import time
from collections.abc import Callable, Iterable
from hashlib import sha256

from ...grant import Refusal
from ...settings import check_seconds
from ..credentials.secret import Secret, checked_secret, checked_secrets
from .request import AuthorizePublish, PublishDecision, PublishGrant, PublishRequest

HEADER = "X-Signature"
# The most signatures in one header. A publisher that changes its secret sends two.
MAX_SIGNATURES = 8
_HEX = re.compile(r"[0-9a-f]{64}")
_MOMENT = re.compile(r"[0-9]{1,12}")
# RFC 9110 asks for the field in every 401.
_CHALLENGE = {"www-authenticate": HEADER}


def every_channel(channel: str) -> bool:
    """Return True: the grant has every channel."""
    return True


def hmac_publish(
    secret: Secret | Iterable[Secret],
    *,
    channels: str | Iterable[str] | Callable[[str], bool] = every_channel,
    window: float = 300.0,
) -> AuthorizePublish:
    """Return an `authorize_publish` for requests that are signed with a shared secret.

    A request has the header `X-Signature: t=<seconds since the epoch>,v1=<signature>`. The signature is the
    HMAC-SHA256, in hexadecimal, of the timestamp, a line end, the value of `Idempotency-Key` without quotes
    (nothing if there is none), a line end, and the body as it is sent. It is valid for `window` seconds
    around its timestamp. Who repeats a signed request in that time publishes its event once, if it has an
    `Idempotency-Key`.

    `secret` is one secret or, to change it, several: each of them is accepted. `channels` are those of the
    PublishGrant; by default all.
    """
    return _SignedRequests(
        checked_secrets(secret, "hmac_publish"),
        PublishGrant(channels=channels),
        window,
    )


def sign(secret: Secret, body: bytes, *, idempotency_key: str = "", moment: int | None = None) -> str:
    """Return the value of `X-Signature` for a body."""
    timestamp = str(int(time.time()) if moment is None else moment)
    return f"t={timestamp},v1={_signature(checked_secret(secret), timestamp, idempotency_key, body)}"


class _SignedRequests:
    def __init__(self, secrets: list[bytes], grant: PublishGrant, window: float) -> None:
        check_seconds("window", window, 24 * 3600)
        self._secrets = secrets
        self._grant = grant
        self._window = window

    async def __call__(self, request: PublishRequest) -> PublishDecision:
        timestamp, given = _parsed(request.headers.get("x-signature", ""))
        if abs(time.time() - int(timestamp)) > self._window:
            return Refusal(
                401,
                f"The timestamp of {HEADER} is more than {self._window:g} s away from the server's time.",
                headers=_CHALLENGE,
            )
        body = await request.body()
        key = request.idempotency_key or ""
        # Every secret is tried with every signature, whichever is the right one.
        matches = [
            hmac.compare_digest(expected, each)
            for expected in [_signature(secret, timestamp, key, body) for secret in self._secrets]
            for each in given
        ]
        if not any(matches):
            return Refusal(401, f"{HEADER} is not the signature of this request.", headers=_CHALLENGE)
        return self._grant


def _parsed(header: str) -> tuple[str, list[str]]:
    """Return the timestamp and the signatures of a header. Raises Refusal."""
    pairs = [part.strip().partition("=")[::2] for part in header.split(",", 2 * MAX_SIGNATURES)]
    moments = [value for name, value in pairs if name == "t"]
    signatures = [value for name, value in pairs if name == "v1"]
    if (
        len(moments) != 1
        or not _MOMENT.fullmatch(moments[0])
        or not 1 <= len(signatures) <= MAX_SIGNATURES
        # The comparison takes the same time for texts of the same length only.
        or not all(map(_HEX.fullmatch, signatures))
    ):
        raise Refusal(401, f"Sign the request: {HEADER}: t=<seconds>,v1=<hexadecimal>.", headers=_CHALLENGE)
    return moments[0], signatures


def _signature(secret: bytes, timestamp: str, key: str, body: bytes) -> str:
    return hmac.new(secret, f"{timestamp}\n{key}\n".encode() + body, sha256).hexdigest()
