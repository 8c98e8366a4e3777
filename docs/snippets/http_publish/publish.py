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
        try:
            response = httpx.post(URL, content=body, headers=headers)
            if response.status_code < 500:
                return response.raise_for_status().json()["id"]
        except httpx.TransportError:
            pass  # It may have been published: ask again.
        time.sleep(random.uniform(0.5, 1) * min(30, 2**attempt))
    raise TimeoutError("the server does not answer")


if __name__ == "__main__":
    print(publish("news", {"title": "from Python"}, "headline"))  # noqa: T201
