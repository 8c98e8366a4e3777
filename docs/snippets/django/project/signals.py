# start: publish
from functools import partial

from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models.signals import post_save
from django.dispatch import receiver

from project.live import push


@receiver(post_save, sender=Group)
def tell_of_group(instance, created, **kwargs):
    if created:
        publish = partial(
            push.publish_sync,
            "news",
            {"id": instance.pk, "name": instance.name},
            event="group",
            idempotency_key=f"group:{instance.pk}",  # Tried again, it is published once.
            retry_for=2,  # Seconds for which this request waits for an absent Redis.
        )
        # robust: if that fails, it is logged. The commit stands, and the request is no 500.
        transaction.on_commit(publish, robust=True)


# end: publish
# start: logout
from django.contrib.auth.signals import user_logged_out


@receiver(user_logged_out)
def end_streams_at_logout(request, user, **kwargs):
    if user is not None:
        # Django sends this signal before it deletes the session, and a client that is back at once must not
        # find it.
        request.session.flush()
        end = partial(push.disconnect_sync, slot_key=str(user.pk))
        transaction.on_commit(end, robust=True)


# end: logout
# start: deactivate
from django.contrib.auth import get_user_model


@receiver(post_save, sender=get_user_model())
def end_streams_of_inactive(instance, **kwargs):
    if not instance.is_active:
        end = partial(push.disconnect_sync, slot_key=str(instance.pk))
        transaction.on_commit(end, robust=True)


# end: deactivate
