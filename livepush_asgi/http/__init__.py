"""One HTTP request: how it is authorized, answered and refused, and how a stream is sent as ASGI messages.

Only app/, contrib/, cli/ and testing/ may import it. Start with `endpoint.py`, which follows a request
from its method to its stream or its refusal. `authorize.py` calls the application; `responses.py` writes
every answer that is no stream; `driver.py` sends a stream.
"""
