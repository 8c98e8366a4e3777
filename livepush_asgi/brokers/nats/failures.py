"""The failures of a server, and the error that the caller gets for them."""

from nats.errors import Error as NatsError

from ...errors import BrokerUnavailableError

#: The errors of a server that is away, refuses or does not answer. TimeoutError is an OSError.
FAILURES = (NatsError, OSError)

# The likely fix, by words in the text of the cause.
_REMEDIES = {
    "authorization": "check the user name, the password or the credentials",
    "authentication": "check the user name, the password or the credentials",
    "permissions violation": "allow the user this subject",
    "no responders": "is JetStream enabled?",
    "max_payload": "publish less at once, or raise max_payload of the server",
    "": "is it running, is the address right, and can it be reached from here?",
}


def unavailable(attempt: str, address: str, cause: BaseException) -> BrokerUnavailableError:
    """Return the error to raise. It names the attempt, the server, the cause and the likely fix."""
    reason = str(cause) or type(cause).__name__
    remedy = next(remedy for words, remedy in _REMEDIES.items() if words in reason.lower())
    error = BrokerUnavailableError(f"cannot {attempt} at {address}: {reason}; {remedy}")
    error.refused = is_forbidden(cause)
    return error


def is_forbidden(cause: BaseException) -> bool:
    """Return whether the user lacks the permission for a subject."""
    return "permissions violation" in str(cause).lower()
