"""livepush_asgi: server push for any Python ASGI application."""
