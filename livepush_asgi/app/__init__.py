"""The public objects of an application: LivePush, its middleware, the service for routes, and Publisher.

Only metrics/, contrib/, cli/ and testing/ may import it. Start with `livepush.py`: the ASGI application,
which also publishes. `middleware.py` serves it at a path in front of another application; `service.py` opens
streams for routes; `generator.py` answers with the events of a generator; `subscriber.py` reads channels in
Python; `publisher.py` publishes from synchronous code. `run.py` has the job that ends, and `runs.py` serves
such jobs to their clients.
"""
