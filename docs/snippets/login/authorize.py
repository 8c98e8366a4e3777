from livepush_asgi import Grant, Refusal
from livepush_asgi.contrib.django import user_of


async def authorize(request):
    user = await user_of(request)
    if not user.is_authenticated:
        return Refusal(401, "Log in first.")
    return Grant(channels=f"user:{user.pk}", slot_key=str(user.pk))
