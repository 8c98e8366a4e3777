# start: publish
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpResponse

from project.live import push


@login_required
def rename(request):
    user = request.user
    with transaction.atomic():
        user.first_name = request.POST["name"]
        user.save()
        # After the commit: who hears of the change and asks the database then finds it.
        data = {"name": user.first_name}
        transaction.on_commit(lambda: push.publish_sync(f"user:{user.pk}", data), robust=True)
    return HttpResponse(status=204)


# end: publish
# start: view
from livepush_asgi import Grant
from livepush_asgi.contrib.django import sse_streaming_response


async def room_events(request, room):
    user = await request.auser()

    def authorize(stream_request):
        # Called in a thread: the ORM works here.
        return Grant(channels=f"room:{room}", slot_key=str(user.pk))

    if not user.is_authenticated:
        return HttpResponse("Log in first.", status=401)
    return await sse_streaming_response(push, request, authorize=authorize)


# end: view
