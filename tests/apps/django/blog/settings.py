import os
from pathlib import Path

BASE = Path(__file__).parent.parent
SECRET_KEY = os.environ.get("SECRET_KEY", "only for the build")
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "blog.urls"
INSTALLED_APPS = ["django.contrib.staticfiles", "entries"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DATABASE", BASE / "db.sqlite3")}}
STATIC_URL, STATIC_ROOT, STATICFILES_DIRS = "static/", BASE / "collected", [BASE / "assets"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
