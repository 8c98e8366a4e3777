"""httpx-sse, which leaves coming back to its user: done here as its documentation says."""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse


def main(url: str) -> None:
    last_event_id, retry, name = "", 0, ""
    with httpx.Client(trust_env=False, timeout=30) as client:
        while name != "end":
            headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
            with connect_sse(client, "GET", url, headers=headers) as source:
                for event in source.iter_sse():
                    last_event_id, name = event.id, event.event
                    retry = retry if event.retry is None else event.retry
                    print(json.dumps([name, event.data, event.id]), flush=True)
                    if name == "end":
                        break
            time.sleep(retry / 1000)


main(sys.argv[1])
