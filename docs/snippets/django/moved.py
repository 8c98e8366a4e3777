import json

from django.core.serializers.json import DjangoJSONEncoder

from livepush_asgi import Event, Grant, LivePush, MemoryBroker, Refusal
from livepush_asgi.contrib.django import user_of


def can_read_channel(user, channel):
    # Your channel manager's method.
    return channel == "news" or (user.is_active and channel == f"user:{user.pk}")


# start: authorize
async def authorize(stream_request):
    user = await user_of(stream_request)
    channels = stream_request.query_all("channel")
    if not channels or not all(can_read_channel(user, channel) for channel in channels):
        return Refusal(403)
    return Grant(channels=channels, slot_key=str(user.pk) if user.is_authenticated else None)


push = LivePush(MemoryBroker(), authorize)  # RedisStreamsBroker where EVENTSTREAM_REDIS was set
# end: authorize


# start: send
def send_event(channel, event_type, data):
    text = json.dumps(data, cls=DjangoJSONEncoder)
    event = Event(text, event=None if event_type == "message" else event_type)
    push.publish_sync(channel, event)


def channel_permission_changed(user, channel):
    if not can_read_channel(user, channel):
        push.disconnect_sync(slot_key=str(user.pk), channel=channel)


# end: send
