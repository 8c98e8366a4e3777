"""The shared secrets of signatures: one, or several while one is changed."""

from collections.abc import Iterable

Secret = str | bytes
MIN_SECRET = 16


def checked_secrets(secret: Secret | Iterable[Secret], user: str) -> list[bytes]:
    """Return the secrets as bytes. Raises ValueError for none and for one that can be guessed."""
    found = [checked_secret(each) for each in ([secret] if isinstance(secret, (str, bytes)) else secret)]
    if not found:
        raise ValueError(f"{user} needs at least one secret, or every request is refused")
    return found


def checked_secret(secret: object) -> bytes:
    """Return a secret as bytes. Raises ValueError for one that can be guessed."""
    if not isinstance(secret, (str, bytes)):
        raise TypeError(f"a secret is a str or bytes, not {type(secret).__name__}")
    found = secret.encode() if isinstance(secret, str) else secret
    if len(found) < MIN_SECRET:
        raise ValueError(
            f"a secret has at least {MIN_SECRET} bytes, or it can be guessed: make one with "
            "secrets.token_hex(32)"
        )
    return found
