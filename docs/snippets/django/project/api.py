from rest_framework.authentication import SessionAuthentication, TokenAuthentication

from livepush_asgi import Grant
from livepush_asgi.contrib.rest_framework import authenticated


@authenticated(authenticators=[TokenAuthentication(), SessionAuthentication()])
def authorize(request):
    user = request.user
    return Grant(channels=["news", f"user:{user.pk}"], slot_key=str(user.pk))
