"""ChannelSigner: what a page may change in the names that it got, and who may use them."""

import hmac
import json
import time
from base64 import urlsafe_b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livepush_asgi import (
    ChannelSigner,
    Grant,
    InvalidGrantError,
    LivePush,
    MemoryBroker,
    Refusal,
    StreamRequest,
    hmac_publish,
)
from livepush_asgi.http.credentials.signed_channels import MAX_LENGTH
from livepush_asgi.testing import Client

# Signatures have the time of the real clock.
pytestmark = pytest.mark.real_time

SECRET = "a secret of thirty-two characters"
OLDER = "the secret that was there before it"
SIGNER = ChannelSigner(SECRET)


def refused(signer: ChannelSigner, signed: str | None, user: str | None = None) -> str:
    """Return the detail of the refusal."""
    with pytest.raises(Refusal) as raised:
        signer.verify(signed, user=user)
    assert raised.value.status == 403
    return raised.value.detail or ""


def test_a_page_gets_the_channels_that_were_signed_for_it() -> None:
    signed = SIGNER.sign("orders:7", "néws", "orders:7", user="ada", ttl=60)
    granted = SIGNER.verify(signed, user="ada")
    assert granted.channels == ("orders:7", "néws")
    assert granted.expires_at == pytest.approx(time.time() + 60, abs=2)
    assert SIGNER.verify(SIGNER.sign("news")).channels == ("news",)


def test_another_user_cannot_use_them() -> None:
    signed, anonymous = SIGNER.sign("orders:7", user="ada"), SIGNER.sign("news")
    for user in ("alan", "", None, "Ada", "ada\n", 'ada"'):
        assert "for this user" in refused(SIGNER, signed, user)
    for user in ("ada", "", "null", "None"):
        assert "for this user" in refused(SIGNER, anonymous, user)


def test_nothing_of_a_signed_text_can_be_changed() -> None:
    signed = SIGNER.sign("orders:7")
    for place in range(len(signed)):
        other = "A" if signed[place] != "A" else "B"
        assert refused(SIGNER, signed[:place] + other + signed[place + 1 :])
    payload, signature = signed.split(".")
    later = urlsafe_b64encode(json.dumps([2**40, "orders:7"]).encode()).decode().rstrip("=")
    for wrong in (
        *(None, "", ".", signed[:-1], signed + "=", signed + ".", payload, payload + ".", "." + signature),
        *(f"{later}.{signature}", f"{payload}=.{signature}", f" {signed}", signed * 2, "x" * 10**6, "\udcff"),
    ):
        assert refused(SIGNER, wrong)


@given(text=st.text(max_size=100))
@settings(max_examples=30, deadline=None)
def test_no_text_from_outside_raises(text: str) -> None:
    assert refused(SIGNER, text)
    assert refused(SIGNER, SIGNER.sign("c").partition(".")[0] + "." + text)


def test_a_signature_expires() -> None:
    assert "expired" in refused(SIGNER, SIGNER.sign("c", ttl=0.001))
    # Only whoever has the channels signed learns that.
    assert "for this user" in refused(SIGNER, SIGNER.sign("c", ttl=0.001), "ada")


def test_a_secret_can_be_changed_without_a_pause() -> None:
    both, older = ChannelSigner([SECRET, OLDER.encode()]), ChannelSigner(OLDER)
    assert both.verify(older.sign("c")).channels == ("c",)
    assert SIGNER.verify(both.sign("c")).channels == ("c",)
    assert refused(SIGNER, older.sign("c"))


def test_every_secret_is_compared_over_equal_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def recording(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    both = ChannelSigner([SECRET, OLDER])
    signed = both.sign("c")
    forged = signed[:-43] + "A" * 43
    monkeypatch.setattr(hmac, "compare_digest", recording)
    both.verify(signed)
    refused(both, forged)
    assert compared == [(43, 43)] * 4


def test_what_cannot_be_signed_raises() -> None:
    for wrong, error in (("", ValueError), ("short", ValueError), ([], ValueError), ([7], TypeError)):
        with pytest.raises(error, match="secret"):
            ChannelSigner(wrong)  # type: ignore[arg-type]
    for channels in ((), ("",), ("livepush.commands",)):
        with pytest.raises(InvalidGrantError):
            SIGNER.sign(*channels)
    with pytest.raises(ValueError, match=f"more than {MAX_LENGTH}"):
        SIGNER.sign("c" * MAX_LENGTH)
    with pytest.raises(ValueError, match="ttl is in seconds"):
        SIGNER.sign("c", ttl=10**9)


async def test_a_stream_of_signed_channels() -> None:
    def authorize(request: StreamRequest) -> Grant:
        user = request.cookies.get("user")
        granted = SIGNER.verify(request.query.get("channels"), user=user)
        return Grant(channels=granted.channels, slot_key=user, expires_at=granted.expires_at)

    push = LivePush(MemoryBroker(), authorize)
    signed = SIGNER.sign("orders:7", user="ada")
    async with push.lifespan(), Client(push) as client:
        async with client.open(f"/?channels={signed}", cookies={"user": "ada"}) as stream:
            await push.publish("orders:7", "paid")
            assert (await stream.next_event()).data == "paid"
        for cookies in ({"user": "alan"}, {}):
            answer = await client.request("GET", f"/?channels={signed}", cookies=cookies)
            assert answer.status == 403
        # The same secret signs requests to publish, and neither is the other.
        publisher = Client(push.publisher(hmac_publish(SECRET)))
        async with publisher:
            header = {"x-signature": f"t={int(time.time())},v1={signed.partition('.')[2]}"}
            body = {"channel": "orders:7", "data": 1}
            assert (await publisher.request("POST", "/", json=body, headers=header)).status == 401
