"""The demo: a web page with this machine's figures and a board for its visitors, over one event stream.

Start with `app.py`, the application. `web.py` answers its HTTP requests, `figures.py` measures the machine,
`serve.py` runs uvicorn, and `page/` has the files that the browser loads.
"""

from .app import Demo

__all__ = ["Demo"]
