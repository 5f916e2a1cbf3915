from django.http import HttpResponse
from django.urls import path

from blog.settings import STATIC_ROOT
from entries.models import Entry

GREETING = "entries"


def index(request):
    Entry.objects.create(title="a visit")
    return HttpResponse(f"{GREETING}: {Entry.objects.first().title}, style: {(STATIC_ROOT / 'style.css').exists()}\n")


urlpatterns = [path("", index)]
