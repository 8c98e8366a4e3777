"""Subjects: a channel's name as NATS can carry it. No two channels have the same, and none is a wildcard.

A subject is words with dots between them; `*` and `>` are wildcards, and white space ends it
(https://docs.nats.io/nats-concepts/subjects). What is none of this stays readable: the channel
`events.42` is the subject `livepush.events.42`, and `nats pub livepush.events.42 hello` reaches it.
"""

import re
from hashlib import sha256
from urllib.parse import quote

# Beside the letters, digits and `_.-~` that `quote` never touches. All else is written as %XX.
_PLAIN = ":@/"
# A dot that would leave a word empty: at either end, or after another dot.
_LONE_DOT = re.compile(r"^\.|\.$|(?<=\.)\.")
# Servers take lines of 4 KiB and cut the whole connection off for a longer one; some have two subjects.
_MOST_CHARACTERS = 512
# Neither can be the begin of what `quote` writes: there two hexadecimal digits follow a %.
_EMPTY = "%"
_DIGEST = "%~"

_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def subject_of(prefix: str, channel: str) -> str:
    """Return the subject of a channel, below a prefix. Any str is a channel."""
    return f"{prefix}.{_words_of(channel)}"


def check_prefix(prefix: str) -> str:
    """Return a prefix for subjects. Raises ValueError for what could be none, or a wildcard."""
    if not _PREFIX.fullmatch(prefix) or len(prefix) > _MOST_CHARACTERS:
        raise ValueError(
            f"a prefix is letters, digits, '-' and '_', in words with dots between them, not {prefix!r}"
        )
    return prefix


def _words_of(channel: str) -> str:
    if not channel:
        return _EMPTY
    # A lone surrogate has no UTF-8, and is no reason to meet another channel or to fail.
    words = _LONE_DOT.sub("%2E", quote(channel, safe=_PLAIN, errors="surrogatepass"))
    if len(words) <= _MOST_CHARACTERS:
        return words
    return _DIGEST + sha256(channel.encode(errors="surrogatepass")).hexdigest()
