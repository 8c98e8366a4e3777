"""What an application holds: LivePush, its middleware, the service for routes, and publishing.

Only contrib/, cli/ and testing/ may import it. Start with `livepush.py`: the ASGI application and the object
through which a program publishes. `middleware.py` puts it on a path in front of another application;
`service.py` opens streams for routes; `publisher.py` publishes from synchronous code.
"""
