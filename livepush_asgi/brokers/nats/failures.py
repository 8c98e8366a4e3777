"""The failures of a server, and the error that the caller gets for them."""

from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from ...errors import BrokerUnavailableError

#: The errors of a server that is away, refuses or does not answer. TimeoutError is an OSError.
FAILURES = (NatsError, OSError)


class PayloadTooLargeError(NatsError):
    """Raised when a payload is larger than the server accepts."""


def unavailable(attempt: str, address: str, cause: BaseException) -> BrokerUnavailableError:
    """Return the error to raise. It names the attempt, the server, the cause and the likely fix."""
    reason = str(cause) or type(cause).__name__
    return BrokerUnavailableError(f"cannot {attempt} at {address}: {reason}; {_remedy(cause, reason)}")


def _remedy(cause: BaseException, reason: str) -> str:
    reason = reason.lower()
    if "authorization" in reason or "authentication" in reason:
        return "check the user name, the password or the credentials"
    if "permissions violation" in reason:
        return "allow the user this subject"
    if isinstance(cause, NoRespondersError):
        return "is JetStream enabled?"
    if isinstance(cause, PayloadTooLargeError):
        return "publish less at once, or raise max_payload of the server"
    return "is it running, is the address right, and can it be reached from here?"
