from datetime import timedelta

import msgspec

from livepush_asgi import LivePush, MemoryBroker, public


class Reading(msgspec.Struct):
    sensor: str
    age: timedelta


push = LivePush(MemoryBroker(), public("readings"), encode=msgspec.json.encode)


async def record(reading: Reading) -> None:
    await push.publish("readings", reading)
