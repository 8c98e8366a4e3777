import os
from datetime import timedelta

from itsdangerous import BadSignature, TimestampSigner

from livepush_asgi import Grant, Refusal

signer = TimestampSigner(os.environ["SECRET_KEY"])
life = timedelta(minutes=5)


def new_token(user_id):  # POST /token returns it to a user who is logged in.
    return signer.sign(user_id).decode()


def authorize(request):
    token = request.query.get("token", "")
    try:
        user_id, since = signer.unsign(token, max_age=life.total_seconds(), return_timestamp=True)
    except BadSignature:  # Also if the token is too old.
        return Refusal(401, "The token has ended.")
    return Grant(channels="news", slot_key=user_id.decode(), expires_at=since + life)
