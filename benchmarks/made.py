"""The application whose function the environment names: `APPLICATION=benchmarks.mounted:fastapi_mount`.

Every server can load `benchmarks.made:app`. Each has a way of its own to call a function for its application.
"""

import os
from importlib import import_module

module, _, function = os.environ["APPLICATION"].partition(":")
app = getattr(import_module(module), function)()
