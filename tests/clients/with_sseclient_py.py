"""sseclient-py, over the bytes that httpx receives. It leaves coming back to its user."""

import json
import sys
import time

import httpx
from sseclient import SSEClient


def main(url: str) -> None:
    last_event_id, retry, name = "", 0, ""
    with httpx.Client(trust_env=False, timeout=30) as client:
        while name != "end":
            headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
            with client.stream("GET", url, headers=headers) as response:
                for event in SSEClient(response.iter_raw()).events():
                    last_event_id, name = event.id or last_event_id, event.event
                    retry = retry if event.retry is None else int(event.retry)
                    print(json.dumps([name, event.data, event.id]), flush=True)
                    if name == "end":
                        break
            time.sleep(retry / 1000)


main(sys.argv[1])
