"""One HTTP request: its authorization, its response or refusal, and a stream as ASGI messages.

Only app/, contrib/, cli/ and testing/ may import it. Start with `endpoint.py`, which handles a request from
its method to its stream or its refusal. `authorize.py` calls the application, whose `authorize` may check
tokens and tickets with `credentials/`; `responses.py` sends every response that is no stream; `driver.py`
sends a stream.
"""
