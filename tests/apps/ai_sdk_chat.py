"""`examples/ai_sdk_chat.py` with a longer answer. uvicorn has `--app-dir examples`."""

from importlib import import_module
from typing import Any

# Any: mypy does not know the folder of the examples.
ai_sdk_chat: Any = import_module("ai_sdk_chat")
ai_sdk_chat.TEXT = " ".join(f"word{number}" for number in range(40))
app = ai_sdk_chat.app
