from django.urls import path
from views import leave, rename, room_events

urlpatterns = [
    path("rename", rename),
    path("logout", leave),
    path("rooms/<str:room>/events", room_events),
]
