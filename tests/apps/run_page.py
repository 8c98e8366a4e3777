"""`examples/run_page.py` with a longer answer, and with less time until a page comes back and a run is lost.

uvicorn has `--app-dir examples`.
"""

from importlib import import_module
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount

from livepush_asgi import LivePush, Refusal, Timing

# Any: mypy does not know the folder of the examples.
run_page: Any = import_module("run_page")
run_page.TEXT = " ".join(f"word{number}" for number in range(40))
run_page.LEASE = 0.8
push = LivePush(run_page.broker, lambda request: Refusal(404), timing=Timing(retry=0.2))
run_page.push = push
runs = Mount("/answers", push.runs(run_page.authorize_run))
app = Starlette(routes=[*run_page.routes[:-1], runs], lifespan=push.lifespan)
