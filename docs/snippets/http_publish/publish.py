import hashlib
import hmac
import json
import os
import random
import time
import uuid

import httpx

URL, SECRET = os.environ["PUBLISH_URL"], os.environ["PUBLISH_SECRET"].encode()


def publish(channel: str, data: object, event: str | None = None) -> str:
    """Publish an event once, however often it has to be sent, and return its id."""
    body = json.dumps({"channel": channel, "data": data, "event": event}).encode()
    key = str(uuid.uuid4())  # Of this event, not of this attempt.
    for attempt in range(8):
        now = int(time.time())
        signature = hmac.new(SECRET, f"{now}\n{key}\n".encode() + body, hashlib.sha256)
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": key,
            "X-Signature": f"t={now},v1={signature.hexdigest()}",
        }
        pause = random.uniform(0.5, 1) * min(30, 2**attempt)
        try:
            response = httpx.post(URL, content=body, headers=headers)
            if response.status_code < 500 and response.status_code not in (408, 429):
                return response.raise_for_status().json()["id"]
            retry_after = response.headers.get("Retry-After", "")
            pause = max(pause, int(retry_after) if retry_after.isdigit() else 0)
        except httpx.TransportError:
            pass  # It may have been published: ask again.
        time.sleep(pause)
    raise TimeoutError("the server does not answer")


if __name__ == "__main__":
    print(publish("news", {"title": "from Python"}, "headline"))  # noqa: T201
