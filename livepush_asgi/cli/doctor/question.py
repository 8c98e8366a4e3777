"""Question: what the doctor asks, and the plans of its probes."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from urllib.parse import urlsplit

from ...http.probe import BOUNDS, QUERY, ProbePlan

# Small events, so close that a hold of 0.2 s shows, so far apart that a busy machine does not look like one.
EVENTS, INTERVAL = 40, 50
# Asked only when events were held back: 64 kB, to see how much has to come together.
WEIGHING = ProbePlan(32, 50, 500, 2048)
# Some proxies compress only what begins with much. This asks for the head of such an answer, and the series
# is then made of events so large.
STOUT, STOUT_SIZE = ProbePlan(1, 10, 0, 2048), 640
# As a browser's EventSource asks. https://html.spec.whatwg.org/multipage/server-sent-events.html
ENCODINGS: tuple[str, ...] = ("gzip", "deflate", "br")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A URL, and how to ask for it. `idle` is the silence asked for, in seconds.

    `patience` is how long, in seconds, an answer may take beyond what was asked for. Raises ValueError.
    """

    url: str
    idle: float = 2.0
    headers: tuple[tuple[str, str], ...] = ()
    origin: str | None = None
    insecure: bool = False
    patience: float = 15.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url!r} is no URL such as https://example.org/events/")
        most = BOUNDS["idle"][1] // 1000
        if not 0 <= self.idle <= most:
            raise ValueError(f"the silence is from 0 to {most} seconds, not {self.idle:g}")

    @property
    def series(self) -> ProbePlan:
        """The first probe."""
        # The shortest silence is there to see whether the last event comes before it is over.
        return ProbePlan(EVENTS, INTERVAL, max(round(1000 * self.idle), 500))

    def busy(self, seconds: float, silence: float) -> ProbePlan:
        """Return a probe of so many seconds, or as many as there may be, that is never silent for so long."""
        interval = int(min(max(silence / 4 * 1000, 100), BOUNDS["interval"][1]))
        return ProbePlan(min(max(int(seconds * 1000 / interval), 1), BOUNDS["events"][1]), interval, 0)

    @property
    def vite_url(self) -> str:
        """Return what only Vite's development server has, and always."""
        return urlsplit(self.url)._replace(path="/@vite/client", query="", fragment="").geturl()

    def url_for(self, plan: ProbePlan | None) -> str:
        """Return the URL that asks for a probe, or for an ordinary stream."""
        if plan is None:
            return self.url
        parts = urlsplit(self.url)
        query = f"{parts.query}&{QUERY}={plan}" if parts.query else f"{QUERY}={plan}"
        return parts._replace(query=query, fragment="").geturl()

    def fields(self, encodings: tuple[str, ...]) -> dict[str, str]:
        """Return the header fields of a request; those that were given come last and win."""
        fields = {
            "Accept": "text/event-stream",
            "Cache-Control": "no-store",
            "Accept-Encoding": ", ".join(encodings) or "identity",
            "User-Agent": "livepush-doctor",
        }
        if self.origin is not None:
            fields["Origin"] = self.origin
        return fields | dict(self.headers)


def repetition(plan: ProbePlan) -> ProbePlan:
    """Return the same probe, without its silence."""
    return replace(plan, idle=min(plan.idle, 500))


def without_probe(url: str) -> str:
    """Return a URL without what asks for a probe."""
    parts = urlsplit(url)
    kept = [each for each in parts.query.split("&") if not each.startswith(f"{QUERY}=")]
    return parts._replace(query="&".join(kept)).geturl()


def speaks_http2() -> bool:
    """Return whether HTTP/2 can be tried: it takes the package `h2`."""
    return find_spec("h2") is not None


def header_of(text: str) -> tuple[str, str]:
    """Read a header field as curl takes it, `Name: value`. Raises ValueError."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isascii() or any(character in text for character in "\r\n"):
        raise ValueError(f"{text!r} is no header field such as 'Authorization: Bearer ...'")
    return name.strip(), value.strip()
