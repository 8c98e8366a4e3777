# start: events
from django.urls import path

from livepush_asgi.contrib.django import needs_asgi

urlpatterns = [
    path("events", needs_asgi),
    # Your own.
]
# end: events
from django.contrib import admin
from django.contrib.auth.views import LogoutView

from project.views import rename, room_events

urlpatterns += [
    path("rename", rename),
    path("logout", LogoutView.as_view(next_page="/")),
    path("admin/", admin.site.urls),
    path("rooms/<str:room>/events", room_events),
]
