"""The same fixtures as the end-to-end tests have."""

from conftest import admin, new_app, server, switch  # noqa: F401
