"""The error tree: one class per situation. A wrong argument is a ValueError or TypeError as well.

LivePushError
├── InvalidEventError         an event that would break the stream (also a ValueError)
├── InvalidGrantError         a channel name, slot key or replay that no grant can have (also a ValueError)
├── CapExceededError          no slot is free for this key
│   └── ProcessFullError      the process has as many streams as it may have
├── SlotsUnavailableError     a slot cannot be counted, and the cap fails closed or is set up wrong
├── BrokerUnavailableError    the broker cannot be reached
├── PositionConflictError     the log has gone on past the expected position
├── MessagesLostError         a subscription may have lost messages; it goes on
├── SubscriptionClosedError   a closed subscription was read
├── GrantExpiredError         the grant of a new stream has expired
├── GrantRevokedError         a stream was revoked while it was being opened
├── AuthorizeError            `authorize` returned neither a Grant nor a Refusal
├── AuthorizationUnavailableError  a token or ticket cannot be checked now
├── RunExistsError            a run has been started under this id
├── RunNotFoundError          there is no run under this id (also a LookupError)
├── RunFailedError            raised by the iterator of a run, with a text for its readers
└── NotRunningError           LivePush was used after it stopped
"""


class LivePushError(Exception):
    """Base class of the errors of this package."""


class InvalidEventError(LivePushError, ValueError):
    """Raised when an event cannot be written as an event stream and read back unchanged."""


class InvalidGrantError(LivePushError, ValueError):
    """Raised for a text that cannot name a channel or a slot key, and for an invalid `replay`.

    If `authorize` raises it, the client gets a 400.
    """


class CapExceededError(LivePushError):
    """Raised when every slot of a key is taken.

    `retry_after` is the value for the header `Retry-After`, in seconds.
    """

    retry_after = 5

    def __init__(self, slot_key: str, cap: int) -> None:
        self.slot_key = slot_key
        self.cap = cap
        super().__init__(f"all {cap} slots of {slot_key!r} are taken; close a stream or raise the cap")


class ProcessFullError(CapExceededError):
    """Raised when the process has as many streams as `Limits.streams` allows, whatever their slot keys.

    `cap` is that limit, and `slot_key` is empty.
    """

    def __init__(self, cap: int) -> None:
        LivePushError.__init__(
            self, f"this process has the {cap} streams that Limits(streams=...) allows; run more processes"
        )
        self.slot_key = ""
        self.cap = cap


class SlotsUnavailableError(LivePushError):
    """Raised when the cap cannot count the slots of a key, and so refuses the stream.

    Either the slot store is unavailable or rejects the slot key, and the cap fails closed; or the cap is
    misconfigured, for example with a client for one node of a cluster. The message names the cause.
    """

    retry_after = 5


class BrokerUnavailableError(LivePushError):
    """Raised when the broker cannot be reached. The event may have been published all the same.

    `disconnect` raises it when it could not send its command: streams in other processes stay open.
    """

    #: Whether the server is there, and refuses this channel.
    refused = False


class PositionConflictError(LivePushError):
    """Raised by `publish` when another event was published after `expected_position`.

    `last` is the last position of the log, if the broker returned it.
    """

    def __init__(self, channel: str, last: object) -> None:
        self.channel = channel
        self.last = last
        super().__init__(
            f"the log of {channel!r} has gone on to {last}; read the new events, and decide again"
        )


class MessagesLostError(LivePushError):
    """Raised by a subscription that may have lost messages. It can be read further."""


class SubscriptionClosedError(LivePushError):
    """Raised when a subscription is read after it was closed."""


class GrantExpiredError(LivePushError):
    """Raised when a stream is opened with a grant whose `expires_at` is in the past."""


class GrantRevokedError(LivePushError):
    """Raised when `disconnect` revokes a stream while it is being opened."""


class AuthorizeError(LivePushError, TypeError):
    """Raised when `authorize` returned neither a Grant nor a Refusal."""


class AuthorizationUnavailableError(LivePushError):
    """Raised when a token or a ticket cannot be checked: its keys, or the server that has it, are away.

    If `authorize` raises it, the client gets a 503, or a soft refusal with `RefusalCause.ERROR`.
    """

    retry_after = 5


class RunExistsError(LivePushError):
    """Raised when a run is started under an id that has a run, and may not join it.

    `state` is the RunState of that run.
    """

    def __init__(self, id: str, state: str) -> None:
        self.id = id
        self.state = state
        super().__init__(f"there is a run {id!r} already, which is {state}: read it, or take another id")


class RunNotFoundError(LivePushError, LookupError):
    """Raised when a run is read that was never started, or whose log was dropped after `History.age`."""

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(f"there is no run {id!r}: it was never started, or its time to live is over")


class RunFailedError(LivePushError):
    """Raise it in the iterator of a run, to end the run as failed with a text for its readers.

        raise RunFailedError("The model is busy. Try again in a minute.") from error

    The text goes to clients as it is: plain text, of which the first 1000 characters count. The readers of a
    run whose iterator raises another error are told that it has failed, and nothing of the error.
    """


class NotRunningError(LivePushError):
    """Raised when a LivePush is used after it has stopped."""
