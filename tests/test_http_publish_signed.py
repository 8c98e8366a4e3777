"""`hmac_publish` and `jwt_publish`: who may publish, and what a forged or late request learns."""

import hmac
import json
import time
from collections.abc import Mapping
from hashlib import sha256

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livepush_asgi import (
    AuthorizePublish,
    LivePush,
    MemoryBroker,
    hmac_publish,
    jwt_publish,
    public,
)
from livepush_asgi.http.publish.signature import MAX_SIGNATURES
from livepush_asgi.testing import Answer, Client

# Signatures and tokens have the time of the real clock.
pytestmark = pytest.mark.real_time

SECRET = "a secret of thirty-two characters"
OLDER = "the secret that was there before it"
BODY = b'{"channel":"news","data":"\xc3\xa9"}'


def signed(
    secret: str = SECRET, body: bytes = BODY, *, key: str = "", age: float = 0, timestamp: str | None = None
) -> str:
    """Return a header as the documentation says how to make it, without the code under test."""
    moment = str(int(time.time() - age)) if timestamp is None else timestamp
    signature = hmac.new(secret.encode(), f"{moment}\n{key}\n".encode() + body, sha256).hexdigest()
    return f"t={moment},v1={signature}"


async def post(authorize: AuthorizePublish, body: bytes = BODY, **headers: str) -> Answer:
    push = LivePush(MemoryBroker(), public("news"))
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with push.lifespan(), Client(push.publisher(authorize)) as client:
        answer = await client.request(
            "POST", "/", body=body, headers={"content-type": "application/json", **fields}
        )
        assert push.statistics()["published"] == (answer.status == 200)
    return answer


async def test_a_signed_request_is_published() -> None:
    assert (await post(hmac_publish(SECRET), x_signature=signed())).status == 200
    assert (await post(hmac_publish(SECRET.encode()), x_signature=signed())).status == 200
    assert (await post(hmac_publish(SECRET, channels="news"), x_signature=signed())).status == 200
    assert (await post(hmac_publish(SECRET, channels=["jobs"]), x_signature=signed())).status == 403


async def test_a_secret_can_be_changed_without_a_pause() -> None:
    both = hmac_publish([SECRET, OLDER])
    for secret in (SECRET, OLDER):
        assert (await post(both, x_signature=signed(secret))).status == 200
    # A publisher may sign with both, too.
    doubled = f"{signed(OLDER)},v1={signed()[-64:]},v0=unknown"
    assert (await post(hmac_publish(SECRET), x_signature=doubled)).status == 200
    assert (await post(hmac_publish(SECRET), x_signature=signed(OLDER))).status == 401


@pytest.mark.parametrize("age", [301, -301, 10**9, -(10**9)])
async def test_a_signature_is_valid_for_five_minutes(age: float) -> None:
    for near in (290, -290):
        assert (await post(hmac_publish(SECRET), x_signature=signed(age=near))).status == 200
    answer = await post(hmac_publish(SECRET), x_signature=signed(age=age))
    assert answer.status == 401
    assert "300 s away" in answer.json()["detail"]
    assert (await post(hmac_publish(SECRET, window=10**4), x_signature=signed(age=301))).status == 200


async def test_each_part_of_a_request_is_signed() -> None:
    header = signed(key="k")
    authorize = hmac_publish(SECRET)
    assert (await post(authorize, x_signature=header, idempotency_key="k")).status == 200
    assert (await post(authorize, x_signature=header, idempotency_key='"k"')).status == 200
    # Whoever repeats the request cannot have it published again under another key, or under none.
    assert (await post(authorize, x_signature=header, idempotency_key="l")).status == 401
    assert (await post(authorize, x_signature=header)).status == 401
    assert (await post(authorize, BODY + b" ", x_signature=header, idempotency_key="k")).status == 401
    moment, signature = header.split(",")
    later = f"t={int(moment[2:]) + 1},{signature}"
    assert (await post(authorize, x_signature=later, idempotency_key="k")).status == 401


MALFORMED = [
    "",
    "t=1",
    "v1=" + "0" * 64,
    "t=,v1=" + "0" * 64,
    "t=-1,v1=" + "0" * 64,
    "t=1e9,v1=" + "0" * 64,
    "t=\u0661,v1=" + "0" * 64,
    "t={now},t={now},v1=" + "0" * 64,
    "t={now},v1=",
    "t={now},v1=" + "0" * 63,
    "t={now},v1=" + "0" * 65,
    "t={now},v1=" + "A" * 64,
    "t={now},v1=" + "g" * 64,
    "t={now}" + (",v1=" + "0" * 64) * (MAX_SIGNATURES + 1),
    "t={now}" + "," * 10_000,
    "=" * 1000,
    "t={now};v1=" + "0" * 64,
]


@pytest.mark.parametrize("header", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_header_that_is_no_signature_is_a_401(header: str) -> None:
    header = header.replace("{now}", str(int(time.time()))).encode().decode("latin-1")
    answer = await post(hmac_publish(SECRET), x_signature=header)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "X-Signature"
    assert len(answer.body) < 300


async def test_every_signature_is_compared_with_every_secret_over_equal_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever byte is wrong, and whether the first pair matches or none does: the same work."""
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def recording(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    right, authorize = signed(), hmac_publish([SECRET, OLDER])
    wrong_at_once = right[:-64] + ("0" if right[-64] != "0" else "1") + right[-63:]
    wrong_at_the_end = right[:-1] + ("0" if right[-1] != "0" else "1")
    for header, status in ((right, 200), (wrong_at_once, 401), (wrong_at_the_end, 401), (signed(OLDER), 200)):
        compared.clear()
        answer = await post(authorize, x_signature=f"{header},v1={'0' * 64}")
        assert answer.status == status
        assert len(compared) == 4
        assert {(len(one), len(other)) for one, other in compared} == {(64, 64)}


@given(header=st.text(st.characters(codec="latin-1"), max_size=200))
@settings(max_examples=30, deadline=None)
async def test_no_header_from_outside_raises(header: str) -> None:
    now = str(int(time.time()))
    answer = await post(hmac_publish(SECRET), x_signature=f"t={now},v1={header}")
    assert answer.status == 401


def test_a_secret_that_can_be_guessed_raises() -> None:
    for wrong, error in (("", ValueError), ("short", ValueError), ([], ValueError), ([7], TypeError)):
        with pytest.raises(error, match="secret"):
            hmac_publish(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window is in seconds"):
        hmac_publish(SECRET, window=0)


# JWT.


def bearer(claims: Mapping[str, object], key: str = SECRET, algorithm: str = "HS256") -> str:
    return f"Bearer {jwt.encode(dict(claims), key, algorithm)}"


def may(*selectors: object) -> dict[str, object]:
    return {"mercure": {"publish": list(selectors)}}


TOKENS: list[tuple[str, str, int]] = [
    ("everything", bearer(may("*")), 200),
    ("by name", bearer(may("jobs", "news")), 200),
    ("in time", bearer({**may("*"), "exp": time.time() + 3600}), 200),
    ("any case of the scheme", bearer(may("*")).replace("Bearer", "bearer"), 200),
    ("another channel", bearer(may("jobs")), 403),
    ("no channels", bearer(may()), 403),
    ("to subscribe only", bearer({"mercure": {"subscribe": ["*"]}}), 403),
    ("no claim", bearer({}), 403),
    ("a claim of another form", bearer({"mercure": "*"}), 403),
    ("a claim of another form within", bearer({"mercure": {"publish": "*"}}), 403),
    ("selectors of another form", bearer(may(7, {"topic": "news"})), 403),
    ("expired", bearer({**may("*"), "exp": time.time() - 1}), 401),
    ("not yet", bearer({**may("*"), "nbf": time.time() + 3600}), 401),
    ("for somebody else", bearer({**may("*"), "aud": "elsewhere"}), 401),
    ("forged", bearer(may("*"), OLDER), 401),
    ("of another algorithm", bearer(may("*"), SECRET * 2, "HS512"), 401),
    ("without a signature", f"Bearer {jwt.encode(may('*'), '', 'none')}", 401),
    ("cut off", bearer(may("*"))[:-1], 401),
    ("no token", "Bearer", 401),
    ("no token, but text", "Bearer x.y.z", 401),
    ("hostile", "Bearer " + "." * 5000, 401),
    ("not a bearer", "Basic dXNlcjpwYXNz", 401),
    ("nothing", "", 401),
]


@pytest.mark.parametrize(("token", "status"), [t[1:] for t in TOKENS], ids=[t[0] for t in TOKENS])
async def test_a_token_says_which_channels_its_publisher_has(token: str, status: int) -> None:
    answer = await post(jwt_publish(SECRET, ["HS256"]), authorization=token)
    assert answer.status == status
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("selector", "channel", "status"),
    [
        ("https://x/books/{id}", "https://x/books/7", 200),
        ("https://x/books/{id}", "https://x/books/7/pages", 403),
        ("https://x/books/{id}", "https://x/bookss", 403),
        ("a.b{id}", "aXb7", 403),
        ("{a}-{b}", "x-y", 200),
        ("{a}-{b}/{c}ab{d}", "x-y-z/aabab", 200),
        ("{a}-{b}-{c}-{d}", "-" * 5000 + "!", 403),
        ("(a+)+{id}$", "a" * 5000, 403),
        ("{+path}", "x", 403),
    ],
)
async def test_a_template_stands_for_the_channels_that_it_can_become(
    selector: str, channel: str, status: int
) -> None:
    body = json.dumps({"channel": channel, "data": 1}).encode()
    answer = await post(jwt_publish(SECRET, ["HS256"]), body, authorization=bearer(may(selector)))
    assert answer.status == status


async def test_audience_and_issuer_are_checked_if_they_are_given() -> None:
    authorize = jwt_publish(SECRET, ["HS256"], audience=["push"], issuer="login")
    for claims, status in (
        ({"aud": "push", "iss": "login"}, 200),
        ({"aud": "push"}, 401),
        ({"iss": "login"}, 401),
        ({"aud": "push", "iss": "elsewhere"}, 401),
    ):
        assert (await post(authorize, authorization=bearer(may("*") | claims))).status == status


def test_algorithms_that_would_admit_everybody_raise() -> None:
    with pytest.raises(TypeError, match=r"\['HS256'\]"):
        jwt_publish(SECRET, "HS256")
    for wrong in ([], ["none"], ["HS256", "None"]):
        with pytest.raises(ValueError, match="algorithms"):
            jwt_publish(SECRET, wrong)


def test_a_key_that_does_not_fit_an_algorithm_raises_and_not_each_request() -> None:
    for key, names in (
        (SECRET, ["RS256"]),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", ["HS256"]),
        (SECRET, ["X"]),
    ):
        with pytest.raises(ValueError, match=r"this is no key for|knows no algorithm"):
            jwt_publish(key, names)
