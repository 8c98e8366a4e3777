# start: login
from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, Refusal, RefusalCause
from livepush_asgi.contrib.django import user_of_sync, uses_database


@uses_database
def authorize(stream_request):
    user = user_of_sync(stream_request)
    if not user.is_authenticated:
        return Refusal(401, "Log in first.")
    key = str(user.pk)
    groups = [f"group:{name}" for name in user.groups.values_list("name", flat=True)]
    return Grant(channels=["news", f"user:{key}", *groups], slot_key=key)


# end: login
# start: push
push = LivePush(
    MemoryBroker(),  # RedisStreamsBroker(Redis.from_url(...)) with several processes
    authorize,
    slots=MemorySlotCap(5),  # SlotCap(redis, cap=5)
    soft_refusals={RefusalCause.CAP, RefusalCause.ERROR},
)
# end: push
