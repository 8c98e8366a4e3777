from html import escape

from livepush_asgi import Event, RunState
from livepush_asgi.dialects import Dialect, frames


def paragraph(item):
    if not isinstance(item, str):
        raise TypeError(f"an item is the text of a paragraph, not {item!r:.100}")
    return Event(f"<p>{escape(item)}</p>")


def last(end):
    match end.state:
        case RunState.RUNNING:
            return b""  # The stream ends before the run: the browser comes back by itself.
        case RunState.DONE:
            return frames(Event("", event="end"))
    return frames(paragraph(end.text), Event("", event="end"))


htmx = Dialect(name="htmx", item=paragraph, last=last, control_events=True)
