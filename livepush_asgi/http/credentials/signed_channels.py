"""ChannelSigner: the names of channels in a page, signed, so that a stream needs no look-up."""

import hmac
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

from ...grant import Grant, Refusal
from ...settings import check_seconds
from .secret import Secret, checked_secrets

TTL = 24 * 3600.0
MAX_TTL = 31 * 24 * 3600
# A URL has to fit into what servers and proxies accept.
MAX_LENGTH = 4096
# Each signature is over this text too, so that none of it is valid where the secret signs something else.
_PURPOSE = b"livepush_asgi channels 1"


class SignedChannels(NamedTuple):
    """What a signature allows: the channels, and until when, in seconds since the epoch."""

    channels: tuple[str, ...]
    expires_at: float


class ChannelSigner:
    """Signs the names of channels for a page, and reads them back when the page opens its stream.

        signer = ChannelSigner(SECRET)
        signed = signer.sign("orders:7", user="ada")  # For the page, which opens /events/?channels=...

        def authorize(request):
            granted = signer.verify(request.query.get("channels"), user=user_of(request))
            return Grant(channels=granted.channels, expires_at=granted.expires_at)

    `secret` is one secret, such as `secrets.token_hex(32)`, or several to change it: the first signs, and
    each is accepted. The client can read the names, and not change them.
    """

    def __init__(self, secret: Secret | Iterable[Secret]) -> None:
        self._secrets = checked_secrets(secret, "ChannelSigner")

    def sign(self, *channels: str, user: str | None = None, ttl: float = TTL) -> str:
        """Return a text for the query of a URL. It is valid for `ttl` seconds, and for this user if given.

        Raises InvalidGrantError for a name that no channel can have, and ValueError if the text is longer
        than a URL may be.
        """
        check_seconds("ttl", ttl, MAX_TTL)
        content = json.dumps([int(time.time() + ttl), *Grant(channels=channels).channel_names])
        payload = urlsafe_b64encode(content.encode()).rstrip(b"=")
        signed = f"{payload.decode()}.{_signature(self._secrets[0], payload, user)}"
        if len(signed) > MAX_LENGTH:
            raise ValueError(
                f"these channels make a text of {len(signed)} characters, more than {MAX_LENGTH}"
            )
        return signed

    def verify(self, signed: str | None, *, user: str | None = None) -> SignedChannels:
        """Return what a text of `sign` allows. `user` is the one who opens the stream, None if unknown.

        Raises Refusal, a 403, unless the text was signed for exactly this user and has not expired.
        """
        payload, _, signature = (signed or "")[: MAX_LENGTH + 1].partition(".")
        given = signature.encode("utf-8", "replace")
        encoded = payload.encode("utf-8", "replace")
        # Every secret is tried, whichever is the right one.
        matches = [
            hmac.compare_digest(_signature(secret, encoded, user).encode(), given) for secret in self._secrets
        ]
        if not any(matches):
            raise Refusal(403, "The channels are not signed for this user.")
        expires_at, *channels = json.loads(urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4)))
        if time.time() >= expires_at:
            raise Refusal(403, "The signature of the channels has expired.")
        return SignedChannels(tuple(channels), float(expires_at))


def _signature(secret: bytes, payload: bytes, user: str | None) -> str:
    # JSON tells no user from the user "null", and has no line end.
    message = b"\n".join([_PURPOSE, json.dumps(user).encode(), payload])
    return urlsafe_b64encode(hmac.new(secret, message, sha256).digest()).rstrip(b"=").decode()
