"""The stories that failed once, each with the sentence that says how."""

from .plan import Plan, Setup
from .tales import Tale

FOUND: dict[str, Tale] = {}
