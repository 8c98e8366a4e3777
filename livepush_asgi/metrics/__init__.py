"""Metrics: the series of a LivePush by name, and as text for Prometheus without any library.

Only contrib/ may import it. `series.py` has the one list of all series: name, type, labels, help text, and
how to read the values from `statistics()`. `text.py` writes them in the OpenMetrics format;
`contrib/prometheus.py` and `contrib/opentelemetry.py` pass them to those libraries.
"""

from .text import CONTENT_TYPE, text

__all__ = ["CONTENT_TYPE", "text"]
