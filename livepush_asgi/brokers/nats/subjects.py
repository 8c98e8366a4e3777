"""Subjects: the names of channels in NATS. No two channels have the same subject, and none is a wildcard.

A subject is words with dots between them; `*` and `>` are wildcards, and white space ends it
(https://docs.nats.io/nats-concepts/subjects). Other characters stay readable: the channel `events.42` is the
subject `livepush.events.42`, and `nats pub livepush.events.42 hello` reaches it.
"""

import re
from hashlib import sha256
from urllib.parse import quote

# Characters that stay, beside the letters, digits and `_.-~`. All others are written as %XX.
_PLAIN = ":@/"
# A dot that would leave a word empty: at either end, or after another dot.
_LONE_DOT = re.compile(r"^\.|\.$|(?<=\.)\.")
# A server cuts the connection for a line of more than 4 KiB, and some lines have two subjects.
_MAX_CHARACTERS = 512
# For an empty name and for a hashed one. `quote` never writes either: two hexadecimal digits follow its %.
_EMPTY = "%"
_DIGEST = "%~"

_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def subject_of(prefix: str, channel: str) -> str:
    """Return the subject of a channel, below a prefix. Any str is a channel."""
    # A lone surrogate has no UTF-8. It must neither fail nor give two channels one subject.
    words = _LONE_DOT.sub("%2E", quote(channel, safe=_PLAIN, errors="surrogatepass"))
    if len(words) > _MAX_CHARACTERS:
        words = _DIGEST + sha256(channel.encode(errors="surrogatepass")).hexdigest()
    return f"{prefix}.{words or _EMPTY}"


def check_prefix(prefix: str) -> str:
    """Return a prefix for subjects. Raises ValueError for an empty one, a wildcard or other characters."""
    if not _PREFIX.fullmatch(prefix) or len(prefix) > _MAX_CHARACTERS:
        raise ValueError(
            f"a prefix is letters, digits, '-' and '_', in words with dots between them, not {prefix!r}"
        )
    return prefix
