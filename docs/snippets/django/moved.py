import json

from asgiref.sync import async_to_sync
from django.core.serializers.json import DjangoJSONEncoder

from livepush_asgi import Event, Grant, LivePush, MemoryBroker, Refusal
from livepush_asgi.contrib.django import user_of, uses_database


def can_read_channel(user, channel):
    """Your channel manager's method. It gets None for somebody who is not logged in, as before."""
    if channel.startswith("user:"):
        return user is not None and user.is_active and channel == f"user:{user.pk}"
    return channel == "news"


# start: authorize
@uses_database  # can_read_channel may ask the ORM. It runs in a thread.
def may_read_all(user, channels):
    reader = user if user.is_authenticated else None
    return all(can_read_channel(reader, channel) for channel in channels)


async def authorize(stream_request):
    user = await user_of(stream_request)
    channels = stream_request.query_all("channel")
    if not channels or not await may_read_all(user, channels):
        return Refusal(403)
    return Grant(channels=channels, slot_key=str(user.pk) if user.is_authenticated else "anonymous")


push = LivePush(MemoryBroker(), authorize)  # RedisStreamsBroker where EVENTSTREAM_REDIS was set
# end: authorize


# start: send
def send_event(channel, event_type, data, json_encode=True, skip_user_ids=()):
    if skip_user_ids:
        raise TypeError("put the sender into the data, and let the page pass over its own events")
    text = json.dumps(data, cls=DjangoJSONEncoder) if json_encode else data
    event = Event(text, event=None if event_type in ("", "message") else event_type)
    async_to_sync(push.publish)(channel, event)


def channel_permission_changed(user, channel):
    if not can_read_channel(user, channel):
        slot_key = "anonymous" if user is None else str(user.pk)
        async_to_sync(push.disconnect)(slot_key=slot_key, channel=channel)


# end: send
