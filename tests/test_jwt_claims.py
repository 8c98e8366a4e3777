"""`jwt_claims`: whose token opens a stream, what a wrong one learns, and keys that change at their issuer."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from runpy import run_path
from typing import Any

import anyio
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from livepush_asgi import (
    AuthorizationUnavailableError,
    Claims,
    Grant,
    LivePush,
    MemoryBroker,
    Refusal,
    RefusalCause,
    StreamRequest,
    jwt_claims,
    jwt_publish,
)
from livepush_asgi.http.credentials.jwt import MAX_TOKEN
from livepush_asgi.http.credentials.key_set import (
    FETCH_TIMEOUT,
    MAX_KEYS,
    REFRESH_INTERVAL,
    RETRY_INTERVAL,
    STALE_TIME,
)
from livepush_asgi.testing import Answer, Client

from .serving import REPOSITORY
from .valkey import until

ClaimsOf = Callable[[StreamRequest], Awaitable[Claims]]
SECRET = "a secret of thirty-two characters"
# Tokens have the time of the real clock, whatever the event loop's says.
LATER = int(time.time()) + 3600
PEM = serialization.PublicFormat.SubjectPublicKeyInfo


class SigningKey:
    """A key of an issuer, with an id."""

    def __init__(self, kid: str, algorithm: str = "ES256") -> None:
        self.kid = kid
        self.algorithm = algorithm
        self._private: Any = (
            ec.generate_private_key(ec.SECP256R1())
            if algorithm == "ES256"
            else rsa.generate_private_key(65537, 2048)
        )

    @property
    def pem(self) -> str:
        public = self._private.public_key()
        return str(public.public_bytes(serialization.Encoding.PEM, PEM).decode())

    @property
    def jwk(self) -> dict[str, object]:
        kind = jwt.algorithms.get_default_algorithms()[self.algorithm]
        return {**kind.to_jwk(self._private.public_key(), as_dict=True), "kid": self.kid, "use": "sig"}

    def token(self, claims: Mapping[str, object] | None = None, **headers: object) -> str:
        given = {"sub": "ada", "exp": LATER} if claims is None else dict(claims)
        return jwt.encode(given, self._private, self.algorithm, headers={"kid": self.kid, **headers})


OLD, NEW = SigningKey("old"), SigningKey("new")
RSA = SigningKey("rsa", "RS256")


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def by_hand(header: Mapping[str, object], secret: str, claims: object = None) -> str:
    """Return a token that PyJWT refuses to make."""
    signed = f"{part(header)}.{part(claims or {'sub': 'ada', 'exp': LATER})}"
    mac = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def key_set(*keys: SigningKey) -> dict[str, object]:
    return {"keys": [key.jwk for key in keys]}


def request(query: str = "", **headers: str) -> StreamRequest:
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    return StreamRequest({"type": "http", "headers": fields, "query_string": query.encode()})


async def outcome(claims_of: ClaimsOf, token: str) -> object:
    """Return the subject of a token, or the status that its client gets."""
    try:
        return (await claims_of(request(authorization=f"Bearer {token}")))["sub"]
    except Refusal as refusal:
        return refusal.status
    except AuthorizationUnavailableError:
        return 503


async def answer_to(claims_of: ClaimsOf, headers: Mapping[str, str], *, soft: bool = False) -> Answer:
    async def authorize(request: StreamRequest) -> Grant:
        claims = await claims_of(request)
        return Grant(channels=f"user:{claims['sub']}", expires_at=claims.expires_at)

    causes = {RefusalCause.ERROR} if soft else set()
    push = LivePush(MemoryBroker(), authorize, soft_refusals=causes)
    async with push.lifespan(), Client(push) as client:
        return await client.request("HEAD" if not soft else "GET", "/", headers=headers)


NOW = int(time.time())
GOOD = {"sub": "ada", "exp": LATER}
TOKENS: list[tuple[str, str, object]] = [
    ("good", RSA.token(), "ada"),
    ("of another key with its id", SigningKey("rsa", "RS256").token(), 401),
    ("signed with the public key as a secret", by_hand({"alg": "HS256", "kid": "rsa"}, RSA.pem), 401),
    ("without a signature", by_hand({"alg": "none"}, "").rpartition(".")[0] + ".", 401),
    ("of no algorithm", by_hand({"kid": "rsa"}, SECRET), 401),
    ("of an algorithm that is a list", by_hand({"alg": ["RS256"], "kid": "rsa"}, SECRET), 401),
    ("of an algorithm in other letters", by_hand({"alg": "rs256", "kid": "rsa"}, SECRET), 401),
    ("with a key id that is a path", RSA.token(kid="../../dev/null"), 401),
    ("with a key id that is no text", by_hand({"alg": "RS256", "kid": {"$ne": 1}}, SECRET), 401),
    ("that brings its own key", OLD.token(jwk=OLD.jwk, kid="rsa"), 401),
    ("that names its own key set", OLD.token(jku="https://evil.example/keys"), 401),
    ("expired", RSA.token({**GOOD, "exp": NOW - 1}), 401),
    ("not yet valid", RSA.token({**GOOD, "nbf": LATER}), 401),
    ("issued in the future", RSA.token({**GOOD, "iat": LATER}), 401),
    ("without an end", RSA.token({"sub": "ada"}), 401),
    ("with an end that never comes", RSA.token({**GOOD, "exp": float("inf")}), 401),
    ("without a subject", RSA.token({"exp": LATER}), 401),
    ("for an audience", RSA.token({**GOOD, "aud": "elsewhere"}), 401),
    ("cut off", RSA.token()[:-1], 401),
    ("changed", RSA.token().replace(".", ".A", 1), 401),
    ("too long", RSA.token({**GOOD, "more": "x" * MAX_TOKEN}), 401),
    ("deeply nested", f"{base64.urlsafe_b64encode(b'[' * 5000).decode()}.e30.e30", 401),
    ("no token", "x.y.z", 401),
    ("no text", "\x00\xff", 401),
    ("dots", "." * 5000, 401),
]


@pytest.mark.parametrize("key", [RSA.pem, key_set(RSA, OLD), {"keys": [{**RSA.jwk, "alg": "RS256"}]}])
async def test_only_a_token_that_its_issuer_signed_for_now_has_claims(key: str | dict[str, object]) -> None:
    claims_of = jwt_claims(key, ["RS256"])
    for name, token, expected in TOKENS:
        if not (isinstance(key, str) and name == "with a key id that is a path"):
            assert await outcome(claims_of, token) == expected, name


@pytest.mark.parametrize(
    ("headers", "status", "challenge"),
    [
        ({"authorization": f"Bearer {RSA.token()}"}, 200, None),
        ({"authorization": "Bearer x"}, 401, 'Bearer error="invalid_token"'),
        ({"authorization": "Basic dXNlcjpwYXNz"}, 401, "Bearer"),
        ({}, 401, "Bearer"),
        ({"cookie": "token=a; token=b"}, 400, 'Bearer error="invalid_request"'),
    ],
)
async def test_a_client_learns_what_to_send_and_nothing_else(
    headers: dict[str, str], status: int, challenge: str | None
) -> None:
    answer = await answer_to(jwt_claims(RSA.pem, ["RS256"], cookie="token"), headers)
    assert (answer.status, answer.headers.get("www-authenticate")) == (status, challenge)


async def test_a_token_is_taken_from_the_header_then_from_the_places_that_are_named() -> None:
    ada, alan = RSA.token(), RSA.token({**GOOD, "sub": "alan"})
    in_cookie, in_both = [jwt_claims(RSA.pem, ["RS256"], cookie="token", query=q) for q in (None, "token")]
    header = {"authorization": f"bearer  {ada}"}
    assert (await in_cookie(request(**header, cookie=f"token={alan}")))["sub"] == "ada"
    # A password that a proxy asks for is no token.
    basic = request(authorization="Basic x", cookie=f"token={alan}; other=1")
    assert (await in_cookie(basic))["sub"] == "alan"
    assert (await in_cookie(request(cookie=f"token={alan}; token={alan}; token=")))["sub"] == "alan"
    assert (await in_both(request(f"token={ada}", cookie=f"token={alan}")))["sub"] == "ada"
    for wrong, status in (
        # Somebody at another name of the same site has added a cookie.
        (request(cookie=f"token={ada}; token={alan}"), 400),
        (request(f"token={ada}"), 401),
        (request(cookie=f"x_token={ada}"), 401),
    ):
        with pytest.raises(Refusal) as refused:
            await in_cookie(wrong)
        assert refused.value.status == status
    with pytest.raises(Refusal):
        await in_both(request(f"token={ada}&token={alan}"))


async def test_audience_and_issuer_are_checked_if_they_are_given() -> None:
    claims_of = jwt_claims(SECRET, ["HS256"], audience=["push"], issuer=["login"], require=["sub"])
    for claims, expected in (
        ({"aud": "push", "iss": "login"}, "ada"),
        ({"aud": ["x", "push"], "iss": "login"}, "ada"),
        ({"aud": "push"}, 401),
        ({"iss": "login"}, 401),
        ({"aud": "push", "iss": "elsewhere"}, 401),
    ):
        assert await outcome(claims_of, jwt.encode({"sub": "ada", **claims}, SECRET, "HS256")) == expected


@pytest.mark.real_time
async def test_the_stream_lasts_as_long_as_its_token_with_the_leeway() -> None:
    now = int(time.time())
    token = RSA.token({**GOOD, "exp": now - 5})
    header = {"authorization": f"Bearer {token}"}
    strict, lenient = jwt_claims(RSA.pem, ["RS256"]), jwt_claims(RSA.pem, ["RS256"], leeway=120)
    assert (await answer_to(strict, header)).status == 401
    assert (await answer_to(lenient, header)).status == 200
    assert (await lenient(request(**header))).expires_at == now + 115
    huge = RSA.token({**GOOD, "exp": 10**20})
    assert Grant(channels="c", expires_at=(await strict(request(authorization=f"Bearer {huge}"))).expires_at)


@pytest.mark.real_time
async def test_a_token_that_expires_while_its_stream_opens_opens_none() -> None:
    exp = int(time.time()) + 1
    claims_of = jwt_claims(RSA.pem, ["RS256"])

    async def slowly(request: StreamRequest) -> Claims:
        claims = await claims_of(request)
        await until(lambda: time.time() > exp)
        return claims

    token = RSA.token({**GOOD, "exp": exp})
    assert (await answer_to(slowly, {"authorization": f"Bearer {token}"})).status == 401


def test_keys_and_algorithms_that_would_admit_others_raise() -> None:
    for algorithms, error in (("HS256", TypeError), ([], ValueError), (["None"], ValueError)):
        with pytest.raises(error, match="algorithms"):
            jwt_claims(SECRET, algorithms)
    for key, names, text in (
        (RSA.pem, ["RS256", "HS256"], "whoever knows the public key"),
        (key_set(RSA), ["HS256", "ES256"], "whoever knows the public key"),
        (RSA.pem, ["HS256"], "no key for HS256"),
        (SECRET, ["RS256"], "no key for RS256"),
        (RSA.pem, ["ES256"], "no key for ES256"),
        (jwt.PyJWK(OLD.jwk), ["RS256"], "this key is for ES256"),
        (SECRET, ["HS257"], "knows no algorithm 'HS257'"),
        (RSA.jwk, ["RS256"], 'a list "keys"'),
        ({"keys": [RSA.jwk] * (MAX_KEYS + 1)}, ["RS256"], "at most 100 keys"),
    ):
        with pytest.raises(ValueError, match=text):
            jwt_claims(key, names)
    with pytest.raises(TypeError, match="key is a secret"):
        jwt_claims(7, ["HS256"])  # type: ignore[arg-type]
    for leeway in (-1, 30_000):
        with pytest.raises(ValueError, match="leeway is in seconds"):
            jwt_claims(SECRET, ["HS256"], leeway=leeway)


# Key sets.


async def test_a_key_is_found_by_its_id_and_its_algorithm() -> None:
    other_uses = [
        {**NEW.jwk, "use": "enc"},
        {**NEW.jwk, "alg": "ES384"},
        {**NEW.jwk, "crv": "P-1"},
        {"kid": "new"},
        "new",
        {**NEW.jwk, "kid": ["new"]},
    ]
    document = {"keys": [*other_uses, OLD.jwk, RSA.jwk]}
    claims_of = jwt_claims(document, ["ES256", "RS256"])
    assert await outcome(claims_of, OLD.token()) == await outcome(claims_of, RSA.token()) == "ada"
    assert await outcome(claims_of, NEW.token()) == 401
    # Without an id there is a key only where there is one key.
    without_id = jwt.encode(GOOD, SECRET, "HS256")
    secrets = [{"kty": "oct", "kid": k, "k": part_of(SECRET)} for k in "ab"]
    assert await outcome(jwt_claims({"keys": secrets[:1]}, ["HS256"]), without_id) == "ada"
    assert await outcome(jwt_claims({"keys": secrets}, ["HS256"]), without_id) == 401


def part_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


class Issuer:
    """An endpoint with a key set, which counts how often it is asked."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys: Sequence[SigningKey] = keys
        self.asked = 0
        self.fails = False
        self.answers = anyio.Event()
        self.answers.set()

    async def fetch(self) -> dict[str, object]:
        self.asked += 1
        await self.answers.wait()
        if self.fails:
            raise ConnectionError("the issuer is away")
        return key_set(*self.keys)

    def claims_of(self) -> ClaimsOf:
        return jwt_claims(self.fetch, ["ES256"])


async def outcomes(claims_of: ClaimsOf, *tokens: str) -> list[object]:
    """Return the outcomes of tokens that come at the same time."""
    found: dict[int, object] = {}

    async def one(number: int, token: str) -> None:
        found[number] = await outcome(claims_of, token)

    async with anyio.create_task_group() as tasks:
        for number, token in enumerate(tokens):
            tasks.start_soon(one, number, token)
    return [found[number] for number in range(len(tokens))]


async def test_openings_at_the_same_time_ask_once() -> None:
    issuer = Issuer(OLD)
    claims_of = issuer.claims_of()
    assert await outcomes(claims_of, *[OLD.token()] * 100) == ["ada"] * 100
    assert issuer.asked == 1


@pytest.mark.virtual_time
async def test_a_new_key_works_at_once_and_an_old_one_until_it_has_left() -> None:
    issuer = Issuer(OLD)
    claims_of = issuer.claims_of()
    assert await outcome(claims_of, OLD.token()) == "ada"
    issuer.keys = [OLD, NEW]
    await anyio.sleep(RETRY_INTERVAL)
    assert await outcomes(claims_of, NEW.token(), OLD.token(), NEW.token()) == ["ada"] * 3
    assert issuer.asked == 2
    issuer.keys = [NEW]
    await anyio.sleep(REFRESH_INTERVAL)
    # This one has the set fetched, and does not wait for it.
    assert await outcome(claims_of, OLD.token()) == "ada"
    await anyio.sleep(1)
    assert await outcomes(claims_of, OLD.token(), NEW.token()) == [401, "ada"]


@pytest.mark.virtual_time
async def test_a_set_that_nobody_has_asked_for_long_is_fetched_before_it_is_believed() -> None:
    issuer = Issuer(OLD)
    claims_of = issuer.claims_of()
    assert await outcome(claims_of, OLD.token()) == "ada"
    issuer.keys = []
    await anyio.sleep(STALE_TIME + 1)
    assert await outcome(claims_of, OLD.token()) == 401


@pytest.mark.virtual_time
async def test_unknown_key_ids_ask_once_in_a_while() -> None:
    issuer = Issuer(OLD)
    claims_of = issuer.claims_of()
    invented = [SigningKey(f"invented-{number}").token() for number in range(20)]
    assert await outcomes(claims_of, *invented) == [401] * 20
    for rounds in range(1, 4):
        for token in invented:
            assert await outcome(claims_of, token) == 401
        assert issuer.asked == rounds
        await anyio.sleep(RETRY_INTERVAL)


@pytest.mark.virtual_time
async def test_an_issuer_that_does_not_answer_delays_those_with_unknown_keys_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    issuer = Issuer(OLD)
    claims_of = issuer.claims_of()
    assert await outcome(claims_of, OLD.token()) == "ada"
    issuer.answers = anyio.Event()
    await anyio.sleep(RETRY_INTERVAL)
    begun, ended = anyio.current_time(), 0.0
    with caplog.at_level(logging.WARNING):
        async with anyio.create_task_group() as tasks:

            async def new() -> None:
                nonlocal ended
                assert await outcome(claims_of, NEW.token()) == 503
                ended = anyio.current_time()

            tasks.start_soon(new)
            await anyio.sleep(1)
            # One that leaves takes nothing away from those that wait.
            with anyio.move_on_after(0.5):
                await outcome(claims_of, NEW.token())
            for _ in range(100):
                assert await outcome(claims_of, OLD.token()) == "ada"
            assert anyio.current_time() - begun == pytest.approx(1.5, abs=0.1)
    assert ended - begun == pytest.approx(FETCH_TIMEOUT, abs=0.1)
    assert issuer.asked == 2
    # Its line is there once, with the cause.
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.virtual_time
async def test_a_client_that_leaves_does_not_end_the_call_for_the_others() -> None:
    issuer = Issuer(OLD)
    issuer.answers = anyio.Event()
    claims_of = issuer.claims_of()
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            assert await outcome(claims_of, OLD.token()) == "ada"

        with anyio.move_on_after(1):
            await outcome(claims_of, OLD.token())
        tasks.start_soon(wait)
        await anyio.sleep(1)
        issuer.answers.set()
    assert issuer.asked == 1


@pytest.mark.virtual_time
async def test_without_keys_a_client_comes_again() -> None:
    issuer = Issuer(OLD)
    issuer.fails = True
    claims_of = issuer.claims_of()
    header = {"authorization": f"Bearer {OLD.token()}"}
    answer = await answer_to(claims_of, header)
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert b"issuer" not in answer.body
    soft = await answer_to(claims_of, header, soft=True)
    assert soft.status == 200
    assert b"livepush.refused" in soft.body
    assert issuer.asked == 1
    issuer.fails = False
    await anyio.sleep(RETRY_INTERVAL)
    assert await outcome(claims_of, OLD.token()) == "ada"


@pytest.mark.virtual_time
async def test_the_last_keys_stay_valid_while_the_issuer_is_away() -> None:
    issuer = Issuer(OLD)
    claims_of = issuer.claims_of()
    assert await outcome(claims_of, OLD.token()) == "ada"
    issuer.fails = True
    await anyio.sleep(REFRESH_INTERVAL)
    for _ in range(3):
        assert await outcome(claims_of, OLD.token()) == "ada"
        await anyio.sleep(STALE_TIME)
    issuer.fails, issuer.keys = False, [NEW]
    assert await outcomes(claims_of, NEW.token()) == ["ada"]
    assert await outcome(claims_of, OLD.token()) == 401


@pytest.mark.parametrize(
    "document", [None, "text", [], {"error": "busy"}, {"keys": {}}, {"keys": [RSA.jwk] * 101}]
)
@pytest.mark.virtual_time
async def test_an_answer_that_is_no_key_set_is_a_failure_and_an_empty_set_is_not(document: object) -> None:
    answers: list[object] = [key_set(OLD), document, {"keys": []}]

    async def fetch() -> Any:
        return answers.pop(0)

    claims_of = jwt_claims(fetch, ["ES256"])
    assert await outcome(claims_of, OLD.token()) == "ada"
    await anyio.sleep(RETRY_INTERVAL)
    assert await outcomes(claims_of, NEW.token(), OLD.token()) == [503, "ada"]
    await anyio.sleep(RETRY_INTERVAL)
    assert await outcome(claims_of, NEW.token()) == 401
    assert await outcome(claims_of, OLD.token()) == 401


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_fetch_that_was_cancelled_says_nothing_about_the_tokens() -> None:
    async def fetch() -> dict[str, object]:
        # As a future that other code shares, and has cancelled.
        raise asyncio.CancelledError

    assert await outcome(jwt_claims(fetch, ["ES256"]), OLD.token()) == 503


@pytest.mark.real_time
async def test_a_plain_function_is_called_in_a_thread() -> None:
    threads: list[threading.Thread] = []

    def fetch() -> Mapping[str, object]:
        threads.append(threading.current_thread())
        return key_set(OLD)

    async def later() -> dict[str, object]:
        return key_set(OLD)

    assert await outcome(jwt_claims(fetch, ["ES256"]), OLD.token()) == "ada"
    assert threads != [threading.main_thread()]
    assert await outcome(jwt_claims(lambda: later(), ["ES256"]), OLD.token()) == "ada"


@pytest.mark.real_time
async def test_a_plain_function_that_never_returns_is_not_the_last_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, seconds in (("FETCH_TIMEOUT", 0.05), ("RETRY_INTERVAL", 0.05), ("STALE_TIME", 0.3)):
        monkeypatch.setattr(f"livepush_asgi.http.credentials.key_set.{name}", seconds)
    stuck, calls = threading.Event(), 0

    def fetch() -> Mapping[str, object]:
        nonlocal calls
        calls += 1
        if calls == 1:
            stuck.wait()
        return key_set(OLD)

    claims_of = jwt_claims(fetch, ["ES256"])
    try:
        assert await outcome(claims_of, OLD.token()) == 503
        with anyio.fail_after(10):
            while await outcome(claims_of, OLD.token()) == 503:  # noqa: ASYNC110  (a thread sets no event)
                await anyio.sleep(0.02)
        assert calls >= 2
    finally:
        stuck.set()


@pytest.mark.real_time
async def test_the_snippet_asks_the_endpoint_of_a_login_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endpoint(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(key_set(OLD)).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("JWKS_URL", f"http://127.0.0.1:{server.server_port}/keys")
        monkeypatch.setenv("ISSUER", "https://login.example")
        authorize = run_path(str(REPOSITORY / "docs/snippets/jwt/authorize.py"))["authorize"]
        claims = {**GOOD, "iss": "https://login.example", "aud": "push", "teams": ["a", "b"]}
        grant = await authorize(request(cookie=f"token={OLD.token(claims)}"))
        server.shutdown()
        thread.join()
    assert grant.channel_names == ("news", "team:a", "team:b")
    assert (grant.slot_key, grant.expiry) == ("ada", LATER + 10)


def test_one_function_serves_one_event_loop_after_the_other() -> None:
    issuer = Issuer(OLD)
    claims_of = issuer.claims_of()
    never = anyio.Event

    async def leave() -> None:
        issuer.answers = never()
        with anyio.move_on_after(0.01):
            await outcome(claims_of, OLD.token())

    async def ask() -> object:
        issuer.answers = anyio.Event()
        issuer.answers.set()
        return await outcome(claims_of, OLD.token())

    # The first loop ends while the set is being fetched in it.
    asyncio.run(leave())
    assert asyncio.run(ask()) == "ada"
    assert issuer.asked == 2


async def test_publishers_may_have_a_key_set_too() -> None:
    issuer = Issuer(OLD)
    push = LivePush(MemoryBroker(), lambda request: Refusal(404))
    publisher = push.publisher(jwt_publish(issuer.fetch, ["ES256"]))
    token = OLD.token({"mercure": {"publish": ["*"]}})
    async with push.lifespan(), Client(publisher) as client:
        for given, status in ((token, 200), (NEW.token({}), 401)):
            answer = await client.request(
                "POST", "/", json={"channel": "c", "data": 1}, headers={"authorization": f"Bearer {given}"}
            )
            assert answer.status == status
