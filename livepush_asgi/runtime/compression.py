"""Warns of the middleware that is known to hold event streams back."""

import logging
import sys

from .failure_log import fields

logger = logging.getLogger("livepush_asgi")


def warn_of_compression() -> None:
    """Log a warning if a GZipMiddleware was imported that compresses event streams and does not flush."""
    module = sys.modules.get("starlette.middleware.gzip")
    # https://github.com/encode/starlette/releases/tag/0.46.0
    if module is not None and not hasattr(module, "DEFAULT_EXCLUDED_CONTENT_TYPES"):
        logger.warning(
            "GZipMiddleware of this Starlette holds back the events of every stream that it is around: "
            "update Starlette to 0.46 or later",
            extra=fields("compression_holds_back"),
        )
