"""The demo: a web page with this machine's figures and a board for its visitors, over one event stream.

Start with `app`, the application. `web` answers its HTTP requests, `figures` measures the machine, `serve`
runs uvicorn, and `page/` has the files that the browser loads. Only `cli.commands` imports this folder.
"""

from .app import Demo

__all__ = ["Demo"]
