"""What a broker is told about its servers: their addresses, the options of nats-py, and the time-outs."""

import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nats.aio.client import Client

# How nats-py is used here.
_OWN_OPTIONS = {
    "allow_reconnect": True,
    "max_reconnect_attempts": -1,
    # Publishing raises while the connection is away, and never waits while it is up.
    "pending_size": 0,
    "flusher_queue_size": 0,
    # Never: the connection is tested by `Connection`.
    "ping_interval": 10**6,
}
# Those, what the connection sets, and what would change what it relies on.
_MANAGED = {
    *_OWN_OPTIONS, "self", "servers", "reconnect_time_wait", "error_cb", "disconnected_cb", "reconnected_cb",
    "closed_cb", "discovered_server_cb", "lame_duck_mode_cb", "reconnect_to_server_handler", "no_echo",
    "verbose", "flush_timeout", "skip_subject_validation",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for the server, in seconds.

    The connection is tested every `ping_interval`, and given up after `ping_timeout` without an answer; each
    step of opening one may take as long. A connection that nobody needs is kept for `linger`, so that a
    program that only publishes does not connect each time.
    """

    subscribe_timeout: float = 2.0
    publish_timeout: float = 5.0
    ping_interval: float = 10.0
    ping_timeout: float = 5.0
    linger: float = 10.0

    def __post_init__(self) -> None:
        for name in ("subscribe_timeout", "publish_timeout", "ping_interval", "ping_timeout", "linger"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is in seconds and more than 0, not {getattr(self, name)!r}")


class Settings:
    """Servers, options for `nats.connect` and time-outs, all checked."""

    def __init__(
        self,
        servers: str | Sequence[str],
        # Any, because that is what nats.connect takes: it has an option of every type.
        options: Mapping[str, Any],
        timeouts: Timeouts,
    ) -> None:
        self.servers = [servers] if isinstance(servers, str) else list(servers)
        if not self.servers or not all(isinstance(url, str) and url for url in self.servers):
            raise ValueError(f"servers are a URL or several, not {servers!r}")
        _check_options(options)
        #: For `nats.connect`.
        self.options = {
            "connect_timeout": timeouts.ping_timeout,
            **_login_of(self.servers),
            **options,
            **_OWN_OPTIONS,
            # Between two attempts to reach the same server. Random, so that processes come back apart.
            "reconnect_time_wait": random.uniform(0.25, 0.75),
        }
        self.timeouts = timeouts

    @property
    def address(self) -> str:
        """Where the servers are, for messages; without user name and password."""
        places = [urlsplit(url).netloc.rpartition("@")[2] or url for url in self.servers]
        return "NATS at " + ", ".join(places)


def _check_options(options: Mapping[str, Any]) -> None:
    known = inspect.signature(Client.connect).parameters.keys()
    for name in options:
        if name in _MANAGED:
            raise TypeError(f"{name!r} is managed by the broker and cannot be set")
        if name not in known:
            raise TypeError(f"nats.connect has no option {name!r}")


def _login_of(servers: Sequence[str]) -> dict[str, str]:
    """Return the login in the URLs as options: the servers that a cluster announces need it too."""
    logins = {(urlsplit(url).username, urlsplit(url).password) for url in servers}
    user, password = logins.pop() if len(logins) == 1 else (None, None)
    if user is None:
        return {}
    return {"token": user} if password is None else {"user": user, "password": password}
