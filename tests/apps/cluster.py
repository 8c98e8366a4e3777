"""The application of the tests with a Redis Cluster, of which `CLUSTER_PORT` is one node.

`GET /?channel=a&channel=b` is a stream of these channels, from the beginning of what is kept.
"""

import os

from redis.asyncio import RedisCluster

from livepush_asgi import Grant, LivePush, MemorySlotCap, RedisStreamsBroker, StreamRequest


def authorize(request: StreamRequest) -> Grant:
    return Grant(channels=request.query_all("channel"), slot_key="k", replay="all")


broker = RedisStreamsBroker(RedisCluster(host="127.0.0.1", port=int(os.environ["CLUSTER_PORT"])))
push = LivePush(broker, authorize, slots=MemorySlotCap(1000))
