"""The numbers of a LivePush as text in the OpenMetrics format, which Prometheus reads. It needs no library.

https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md
"""

from collections.abc import Iterator
from itertools import accumulate

from ..app.livepush import LivePush
from ..runtime.histogram import HistogramData
from .series import SERIES, Series, Value

#: The `Content-Type` of the text.
CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_UNITS = {"s": "seconds", "By": "bytes"}
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})


def text(push: LivePush) -> bytes:
    """Return the numbers of this process in the OpenMetrics format. Send it with the type CONTENT_TYPE.

    Each worker process of a server has numbers of its own, and a scrape reaches one of them:
    `livepush_asgi.contrib.prometheus.instrument` is for several workers behind one address.
    """
    now = push.statistics()
    lines = [line for series in SERIES for line in _lines(series, series.read(now))]
    return "\n".join([*lines, "# EOF", ""]).encode()


def _lines(series: Series, values: dict[tuple[str, ...], Value]) -> Iterator[str]:
    yield f"# TYPE {series.name} {series.kind}"
    if series.unit in _UNITS:
        yield f"# UNIT {series.name} {_UNITS[series.unit]}"
    yield f"# HELP {series.name} {series.help.translate(_ESCAPES)}"
    for label_values, value in values.items():
        labels = list(zip(series.labels, label_values, strict=True))
        if isinstance(value, dict):
            yield from _histogram(series.name, labels, value)
        else:
            yield f"{series.full_name}{_braces(labels)} {value}"


def _histogram(name: str, labels: list[tuple[str, str]], data: HistogramData) -> Iterator[str]:
    counts = list(accumulate(data["counts"]))
    for bound, count in zip([*data["bounds"], float("inf")], counts, strict=True):
        yield f"{name}_bucket{_braces([*labels, ('le', bound_text(bound))])} {count}"
    yield f"{name}_count{_braces(labels)} {counts[-1]}"
    yield f"{name}_sum{_braces(labels)} {data['sum']}"


def bound_text(bound: float) -> str:
    """Return the bound of a range as the value of the label `le`."""
    return "+Inf" if bound == float("inf") else repr(float(bound))


def _braces(labels: list[tuple[str, str]]) -> str:
    if not labels:
        return ""
    return "{" + ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels]) + "}"
