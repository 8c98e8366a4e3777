"""What can go wrong with a server, and the error that the caller gets for it."""

from nats.errors import Error as NatsError

from ...errors import BrokerUnavailableError

#: Everything that a server which is away, refuses or does not answer can cause. TimeoutError is an OSError.
FAILURES = (NatsError, OSError)


class PayloadTooLargeError(NatsError):
    """Raised when a payload is larger than the server accepts."""


def no_answer(timeout: float) -> TimeoutError:
    """Return the error of a deadline that has passed."""
    return TimeoutError(f"no answer within {timeout:g} s")


def unavailable(attempt: str, address: str, cause: BaseException) -> BrokerUnavailableError:
    """Return the error to raise: what was attempted, where, why it failed and what may help."""
    reason = str(cause) or type(cause).__name__
    return BrokerUnavailableError(f"cannot {attempt} at {address}: {reason}; {_remedy(cause, reason)}")


def _remedy(cause: BaseException, reason: str) -> str:
    reason = reason.lower()
    if "authorization" in reason or "authentication" in reason:
        return "check the user name, the password or the credentials"
    if "permissions violation" in reason:
        return "allow the user this subject"
    if isinstance(cause, PayloadTooLargeError):
        return "publish less at once, or raise max_payload of the server"
    return "is it running, is the address right, and can it be reached from here?"
