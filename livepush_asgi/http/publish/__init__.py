"""Publishing over HTTP: an ASGI application that takes events from publishers in any language.

Only app/ and the rooms above it may import it, and http/. Start with `endpoint.py`, which handles a request
from its method to its answer. `request.py` has the request with its bounded body, and the grant. `content.py`
reads JSON and Mercure's form, `publishing.py` publishes the events in order. `signature.py` and `jwt.py` are
two `authorize_publish` for applications; `jwt.py` needs the extra `jwt`, and checks tokens as
`http/credentials/` does.
"""
