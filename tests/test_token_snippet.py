"""docs/guides/clients.md: the token for a stream, whose end is the end of the Grant."""

import time
from runpy import run_path

import pytest
from itsdangerous import TimestampSigner

from livepush_asgi import Grant, Refusal
from livepush_asgi.grant import StreamRequest

from .serving import REPOSITORY


class Earlier(TimestampSigner):
    """Signs as the snippet did five minutes ago."""

    def get_timestamp(self) -> int:
        return super().get_timestamp() - 302


def test_a_grant_ends_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "only for this test")
    snippet = run_path(str(REPOSITORY / "docs/snippets/token/authorize.py"))
    token = snippet["new_token"]("7")

    def decide(token: str) -> object:
        query = f"token={token}".encode()
        return snippet["authorize"](StreamRequest({"query_string": query, "headers": []}))

    grant = decide(token)
    assert isinstance(grant, Grant)
    assert grant.slot_key == "7"
    assert grant.expiry == pytest.approx(time.time() + 300, abs=2)
    for wrong in ("", "7", token + "x"):
        assert isinstance(decide(wrong), Refusal)
    assert isinstance(decide(Earlier("only for this test").sign("7").decode()), Refusal)
