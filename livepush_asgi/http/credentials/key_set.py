"""The keys that verify the signatures of tokens: one, a key set (JWKS), or a key set that is fetched."""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable, iscoroutinefunction
from typing import Protocol

import anyio
import anyio.to_thread
import jwt
from jwt.algorithms import get_default_algorithms, requires_cryptography

from ...errors import AuthorizationUnavailableError
from ...runtime.event_loop import loop_identity, now, spawn
from ...runtime.failure_log import FailureLog, fields

# A fetched key set is fetched again when it is older, in seconds. Requests do not wait for that, unless it is
# older than STALE_TIME: then a key may have left it long ago.
REFRESH_INTERVAL, STALE_TIME = 300.0, 600.0
# How soon it may be fetched again for an unknown key id or after a failure, in seconds.
RETRY_INTERVAL = 10.0
# Below `Timing.authorize_timeout`, so that a client learns why.
FETCH_TIMEOUT = 5.0
# No issuer has more keys. Each is parsed once for each algorithm that it may be for.
MAX_KEYS = 100
UNAVAILABLE = "the key set could not be fetched; tokens of known keys stay valid, others are a 503"

KeySetDocument = Mapping[str, object]
FetchKeySet = Callable[[], KeySetDocument | Awaitable[KeySetDocument]]
Key = str | bytes | jwt.PyJWK | KeySetDocument | FetchKeySet


class VerifyingKeys(Protocol):
    """Where the key of a token comes from."""

    async def find(self, kid: str | None, algorithm: str) -> "VerifyingKey | None":
        """Return the key for a token, or None if there is none. Raises AuthorizationUnavailableError."""
        ...


#: A key as `jwt.decode` takes it.
VerifyingKey = jwt.PyJWK | str | bytes


def verifying_keys(key: Key, algorithms: Sequence[str]) -> VerifyingKeys:
    """Return where the keys of tokens come from. Raises TypeError and ValueError for a wrong `key`."""
    _check_algorithms(algorithms)
    if isinstance(key, Mapping):
        return KeySet(key, algorithms)
    if isinstance(key, (str, bytes, jwt.PyJWK)):
        return OneKey(key, algorithms)
    if callable(key):
        return FetchedKeySet(key, algorithms)
    raise TypeError(
        "key is a secret, a public key as PEM, a PyJWK, a key set (a dict with the list `keys`) or a "
        f"function that returns one, not {type(key).__name__}"
    )


def _check_algorithms(algorithms: Sequence[str]) -> None:
    known = {*get_default_algorithms(), *requires_cryptography}
    if unknown := [name for name in algorithms if name not in known]:
        raise ValueError(f"PyJWT knows no algorithm {unknown[0]!r}")
    if missing := [name for name in algorithms if name not in get_default_algorithms()]:
        raise ImportError(f"{missing[0]} needs cryptography: pip install 'pyjwt[crypto]'")
    if len({name.startswith("HS") for name in algorithms}) > 1:
        raise ValueError(
            "algorithms has some for a shared secret (HS...) and others for a public key: whoever knows the "
            "public key could sign with it as the secret; name one kind"
        )


class OneKey:
    """One key for every token, whatever its key id."""

    def __init__(self, key: VerifyingKey, algorithms: Sequence[str]) -> None:
        if not isinstance(key, jwt.PyJWK):
            for name in algorithms:
                try:
                    get_default_algorithms()[name].prepare_key(key)
                except (jwt.PyJWTError, ValueError, TypeError) as error:
                    raise ValueError(f"this is no key for {name}: {error}") from None
        elif key.algorithm_name not in algorithms:
            raise ValueError(f"this key is for {key.algorithm_name}, which is not in {list(algorithms)}")
        self._key = key

    async def find(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        """Return the key, unless it is for another algorithm."""
        if isinstance(self._key, jwt.PyJWK) and self._key.algorithm_name != algorithm:
            return None
        return self._key


class KeySet:
    """The keys of a document as https://www.rfc-editor.org/rfc/rfc7517 describes it."""

    def __init__(self, document: object, algorithms: Sequence[str]) -> None:
        keys = document.get("keys") if isinstance(document, Mapping) else None
        if not isinstance(keys, list):
            raise ValueError(
                'a key set is a dict with a list "keys", such as response.json() of the issuer\'s jwks_uri, '
                f"not {document!r:.100}"
            )
        if len(keys) > MAX_KEYS:
            raise ValueError(f"a key set has at most {MAX_KEYS} keys, not {len(keys)}")
        self._keys: dict[tuple[object, str], jwt.PyJWK] = {}
        for each in keys:
            if not isinstance(each, dict) or each.get("use", "sig") != "sig":
                continue
            for name in algorithms:
                if (key := _parsed(each, name)) is not None:
                    self._keys.setdefault((each.get("kid"), name), key)

    async def find(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        """Return the key with this id. A token without one is for a set with one key for the algorithm."""
        return self.get(kid, algorithm)

    def get(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        """Return what `find` returns."""
        if kid is not None:
            return self._keys.get((kid, algorithm))
        found = [key for (_, name), key in self._keys.items() if name == algorithm]
        return found[0] if len(found) == 1 else None


def _parsed(key: dict[str, object], algorithm: str) -> jwt.PyJWK | None:
    """Return a key of a set, or None if it is not for this algorithm or cannot be read."""
    if key.get("alg", algorithm) != algorithm or not isinstance(key.get("kid"), (str, type(None))):
        return None
    try:
        return jwt.PyJWK(key, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, LookupError):
        return None


class FetchedKeySet:
    """A key set that is fetched when a token needs it, by one call at a time, and kept.

    The call is no part of the request that causes it: it goes on when that client has left, and requests
    whose key is known do not wait for it.
    """

    def __init__(self, fetch: FetchKeySet, algorithms: Sequence[str]) -> None:
        self._fetch = fetch
        self._algorithms = algorithms
        self._keys: KeySet | None = None
        self._error: BaseException | None = None
        self._failures = FailureLog()
        # The event loop that the next three belong to.
        self._loop: object = None
        self._fetched: anyio.Event | None = None
        self._asked_at = self._fetched_at = -math.inf
        # Since when a thread has run `fetch`, perhaps after its time was over.
        self._in_thread_since = -math.inf

    async def find(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        """Return a key of the set, which is fetched if there is none yet, or none with this id."""
        self._start_unless_asked(RETRY_INTERVAL if self._error is not None else REFRESH_INTERVAL)
        if (found := self._get(kid, algorithm)) is not None and not self._is_stale():
            return found
        self._start_unless_asked(RETRY_INTERVAL)
        if self._fetched is not None:
            # `Limits.streams` bounds how many requests wait here.
            await self._fetched.wait()
        if (found := self._get(kid, algorithm)) is None and self._error is not None:
            raise AuthorizationUnavailableError("the key set could not be fetched") from self._error
        return found

    def _get(self, kid: str | None, algorithm: str) -> VerifyingKey | None:
        return None if self._keys is None else self._keys.get(kid, algorithm)

    def _is_stale(self) -> bool:
        # While the issuer does not answer, the last keys that it had are the best there are.
        return self._error is None and now() - self._fetched_at > STALE_TIME

    def _start_unless_asked(self, interval: float) -> None:
        """Begin to fetch, unless that happens now or has begun less than `interval` seconds ago."""
        if (loop := loop_identity()) is not self._loop:
            self._loop, self._fetched, self._error = loop, None, None
            self._asked_at = self._fetched_at = -math.inf
        if self._fetched is None and now() - self._asked_at >= interval:
            self._asked_at = now()
            self._fetched = done = anyio.Event()
            spawn(lambda: self._run(done), "livepush key set")

    async def _run(self, done: anyio.Event) -> None:
        try:
            with anyio.fail_after(FETCH_TIMEOUT):
                self._keys = KeySet(await self._ask(), self._algorithms)
            self._error, self._fetched_at = None, now()
        except BaseException as error:
            # Also after a cancellation: a client whose key is not known has to come again.
            self._error = error
            if not isinstance(error, (Exception, BaseExceptionGroup)):
                raise
            self._failures.log(logging.WARNING, UNAVAILABLE, error=error, extra=fields("key_set_failed"))
        finally:
            if self._fetched is done:
                self._fetched = None
            done.set()

    async def _ask(self) -> object:
        """Call `fetch`, in a thread if it is not asynchronous."""
        if iscoroutinefunction(self._fetch):
            return await self._fetch()
        # A call without a time-out of its own may never return, and must not be the last one.
        if abs(now() - self._in_thread_since) < STALE_TIME:
            raise TimeoutError("the last call of the function that fetches it has not returned yet")
        self._in_thread_since = now()
        # A limiter of its own: the threads of the application may all be busy, and this one may stay so.
        limiter = anyio.CapacityLimiter(1)
        result = await anyio.to_thread.run_sync(self._call_in_thread, abandon_on_cancel=True, limiter=limiter)
        return await result if isawaitable(result) else result

    def _call_in_thread(self) -> object:
        try:
            return self._fetch()
        finally:
            self._in_thread_since = -math.inf
