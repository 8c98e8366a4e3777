#!/bin/sh
# Replace the workers on these ports, one after the other: restart.sh 8001 8002 8003 8004
set -eu
for port in "$@"; do
  systemctl restart "livepush@$port"
  until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health/ready"; do sleep 1; done
  # HAProxy has noticed after 2 x 1 s (`inter`, `rise`). The streams of the next worker end DRAIN_DELAY (5 s) later.
  sleep 3
done
