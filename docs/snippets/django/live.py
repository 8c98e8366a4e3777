from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, Refusal, RefusalCause
from livepush_asgi.contrib.django import user_of, uses_database


# start: orm
@uses_database
def groups_of(user):
    return [f"group:{name}" for name in user.groups.values_list("name", flat=True)]


# end: orm
# start: login
async def authorize(stream_request):
    user = await user_of(stream_request)
    if not user.is_authenticated:
        return Refusal(401, "Log in first.")
    key = str(user.pk)
    return Grant(channels=["news", f"user:{key}", *await groups_of(user)], slot_key=key)


# end: login
# start: push
push = LivePush(
    MemoryBroker(),  # RedisStreamsBroker(Redis.from_url(...)) with several processes
    authorize,
    slots=MemorySlotCap(5),  # SlotCap(redis, cap=5)
    soft_refusals={RefusalCause.CAP},
)
# end: push
