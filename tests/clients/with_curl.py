"""curl, and what a shell script would make of its lines."""

import json
import subprocess
import sys
import time


def main(url: str) -> None:
    last_event_id, retry, name = "", 0, ""
    while name != "end":
        command = ["curl", "--silent", "--show-error", "--no-buffer", "--fail", "--noproxy", "*", url]
        command += ["--header", f"Last-Event-ID: {last_event_id}"] if last_event_id else []
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            name, data = "message", list[str]()
            for raw in curl.stdout:
                field, _, value = raw.decode().removesuffix("\n").partition(": ")
                if field == "data":
                    data.append(value)
                elif field == "event":
                    name = value
                elif field == "id":
                    last_event_id = value
                elif field == "retry":
                    retry = int(value)
                elif not field:
                    print(json.dumps([name, "\n".join(data), last_event_id]), flush=True)
                    if name == "end":
                        curl.kill()
                        return
                    name, data = "message", []
        assert curl.returncode == 0
        time.sleep(retry / 1000)


main(sys.argv[1])
