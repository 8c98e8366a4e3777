import os

from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client.multiprocess import MultiProcessCollector
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import Mount

from livepush_asgi import LivePush, RedisStreamsBroker, public
from livepush_asgi.contrib.prometheus import instrument

redis = Redis.from_url(os.environ["LIVEPUSH_REDIS"])
push = LivePush(RedisStreamsBroker(redis), public("news"))

# start: workers
instrument(push)  # Where push is made.
registry = CollectorRegistry()
MultiProcessCollector(registry)
metrics = make_asgi_app(registry)
# end: workers

app = Starlette(routes=[Mount("/metrics", metrics), Mount("/events", push)], lifespan=push.lifespan)
