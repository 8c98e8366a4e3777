from django.contrib.auth import logout
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpResponse
from live import push

from livepush_asgi import Grant
from livepush_asgi.contrib.django import sse_streaming_response


# start: publish
@login_required
def rename(request):
    user = request.user
    with transaction.atomic():
        user.first_name = request.POST["name"]
        user.save()
        # After the commit: who hears of the change and asks the database then finds it.
        transaction.on_commit(lambda: push.publish_sync(f"user:{user.pk}", {"name": user.first_name}))
    return HttpResponse(status=204)


# end: publish
# start: revoke
@login_required
def leave(request):
    key = str(request.user.pk)
    logout(request)
    push.disconnect_sync(slot_key=key)
    return HttpResponse(status=204)


# end: revoke
# start: view
async def room_events(request, room):
    user = await request.auser()

    def authorize(stream_request):
        # Called in a thread: the ORM works here.
        return Grant(channels=f"room:{room}", slot_key=str(user.pk))

    if not user.is_authenticated:
        return HttpResponse("Log in first.", status=401)
    return await sse_streaming_response(push, request, authorize=authorize)


# end: view
