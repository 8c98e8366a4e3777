"""The error tree: one class per situation. A wrong argument is a ValueError or TypeError as well.

LivePushError
├── InvalidEventError         an event that would break the stream (also a ValueError)
├── InvalidGrantError         a channel name, slot key or replay that no grant can have (also a ValueError)
├── CapExceededError          no slot is free for this key
│   └── ProcessFullError      the process has all the streams that it may have
├── SlotsUnavailableError     a slot cannot be counted, and the cap fails closed or is set up wrong
├── BrokerUnavailableError    the broker cannot be reached
├── PositionConflictError     an event was to follow a position that is not the last one
├── MessagesLostError         messages of a subscription may have been lost; it goes on
├── SubscriptionClosedError   a closed subscription was read
├── GrantExpiredError         a stream was asked for with a grant that is over
├── GrantRevokedError         a stream was revoked while it was being opened
├── AuthorizeError            `authorize` returned something else than a Grant or a Refusal
└── NotRunningError           LivePush was used after it stopped
"""


class LivePushError(Exception):
    """Base of every error that this package raises on its own account."""


class InvalidEventError(LivePushError, ValueError):
    """Raised when an event cannot be written as an event stream and read back unchanged."""


class InvalidGrantError(LivePushError, ValueError):
    """Raised for text that cannot name a channel or a slot key, and for other terms a client may send.

    Raised inside `authorize` it becomes that client's 400.
    """


class CapExceededError(LivePushError):
    """Raised when every slot of a key is taken.

    Carries `slot_key` and `cap`; `retry_after` is the hint in seconds for an HTTP 429.
    """

    retry_after = 5

    def __init__(self, slot_key: str, cap: int) -> None:
        self.slot_key = slot_key
        self.cap = cap
        super().__init__(f"all {cap} slots of {slot_key!r} are taken; close a stream or raise the cap")


class ProcessFullError(CapExceededError):
    """Raised when the process has as many streams as `Limits.streams` allows, whatever their slot keys.

    `cap` is that number, `slot_key` is empty.
    """

    def __init__(self, cap: int) -> None:
        LivePushError.__init__(
            self, f"this process has the {cap} streams that Limits(streams=...) allows; run more processes"
        )
        self.slot_key = ""
        self.cap = cap


class SlotsUnavailableError(LivePushError):
    """Raised when a slot cannot be counted and is not given.

    The slot store is away or refuses the slot key, and the cap is configured to fail closed; or the cap can
    never count, as with a client of one node of a cluster. The message says which.
    """

    retry_after = 5


class BrokerUnavailableError(LivePushError):
    """Raised when the broker cannot be reached. What was being published may or may not have arrived."""


class PositionConflictError(LivePushError):
    """Raised when an event was to follow a certain position, and another event came first.

    `last` is the position that the log has reached, as far as the broker told it.
    """

    def __init__(self, channel: str, last: object) -> None:
        self.channel = channel
        self.last = last
        super().__init__(f"{channel!r} has gone on to {last}; read what came, and decide anew")


class MessagesLostError(LivePushError):
    """Raised by a subscription when messages may have been lost. The subscription goes on afterwards."""


class SubscriptionClosedError(LivePushError):
    """Raised when a subscription is read after it was closed."""


class GrantExpiredError(LivePushError):
    """Raised when a stream is opened with a grant whose `expires_at` is past."""


class GrantRevokedError(LivePushError):
    """Raised when `disconnect` named a stream while it was being opened."""


class AuthorizeError(LivePushError, TypeError):
    """Raised when `authorize` returned neither a Grant nor a Refusal."""


class NotRunningError(LivePushError):
    """Raised when a LivePush is used after it has stopped."""
