"""The settings of a NATS broker: addresses of the servers, options of nats-py, and time-outs."""

import inspect
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from nats.aio.client import Client

from ...settings import check_seconds, value_or_default
from ..timeouts import BrokerTimeouts

# The longest time in seconds. A longer one is most likely in milliseconds.
_LONGEST_LINGER = 3600
# The options that this package relies on. The broker adds times to them.
_OWN_OPTIONS = {
    "allow_reconnect": True,
    "max_reconnect_attempts": -1,
    # Publishing raises while the connection is away, and never waits while it is up.
    "pending_size": 0,
    "flusher_queue_size": 0,
}
# Options that a caller may not set: those above, those that the broker sets, and those that break it.
_MANAGED = {
    *_OWN_OPTIONS, "self", "servers", "reconnect_time_wait", "ping_interval", "max_outstanding_pings",
    "error_cb", "disconnected_cb", "reconnected_cb", "closed_cb", "discovered_server_cb", "lame_duck_mode_cb",
    "reconnect_to_server_handler", "no_echo", "verbose", "flush_timeout", "skip_subject_validation",
}  # fmt: skip


class Settings:
    """Servers, options for `nats.connect` and time-outs, all checked.

    `linger` is in seconds: a connection without work is kept for this long, so that a program that only
    publishes does not connect each time.
    """

    def __init__(
        self,
        servers: str | Sequence[str],
        # Any: the options of nats.connect have many types.
        options: Mapping[str, Any],
        timeouts: BrokerTimeouts | None,
        linger: float,
    ) -> None:
        self.timeouts = value_or_default("timeouts", timeouts, BrokerTimeouts)
        check_seconds("linger", linger, _LONGEST_LINGER)
        self.linger = linger
        given = [servers] if isinstance(servers, str) else servers
        self.servers = list(given) if isinstance(given, Sequence) else []
        if not self.servers or not all(isinstance(url, str) and url for url in self.servers):
            raise ValueError(
                f"servers are a URL or several of one cluster, 'nats://127.0.0.1:4222', not {servers!r:.100}"
            )
        allowed = inspect.signature(Client.connect).parameters.keys() - _MANAGED
        for name in options.keys() - allowed:
            raise TypeError(f"{name!r} is no option of nats.connect, or one that the broker sets itself")
        interval = min(self.timeouts.ping_interval, self.timeouts.ping)
        #: For `nats.connect`.
        self.options = {
            "connect_timeout": self.timeouts.ping,
            **_login_of(self.servers),
            **options,
            **_OWN_OPTIONS,
            "ping_interval": interval,
            # nats-py gives the connection up when it would send the next PING.
            "max_outstanding_pings": math.ceil(self.timeouts.ping / interval),
            # The pause between two attempts at one server. Random, so that processes do not return together.
            "reconnect_time_wait": random.uniform(0.25, 0.75),
        }

    @property
    def address(self) -> str:
        """Where the servers are, for messages; without user name and password."""
        places = [urlsplit(url).netloc.rpartition("@")[2] or url for url in self.servers]
        return "NATS at " + ", ".join(places)


def _login_of(servers: Sequence[str]) -> dict[str, str]:
    """Return the login in the URLs as options, so that it is used for servers that the cluster announces."""
    logins = {(urlsplit(url).username, urlsplit(url).password) for url in servers}
    user, password = logins.pop() if len(logins) == 1 else (None, None)
    if user is None:
        return {}
    return {"token": user} if password is None else {"user": user, "password": password}
