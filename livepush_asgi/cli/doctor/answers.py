"""Answers: what the head of an answer says, and what is no stream. Pure functions."""

import json
from collections.abc import Iterator
from urllib.parse import urlsplit

from .finding import Finding, fault, note, unexamined, warning
from .observation import Answer, Observation, Redirect, Trouble
from .reading import text_of

TROUBLES = {
    Trouble.NAME: "There is no address for this host name.",
    Trouble.REFUSED: "Nobody listens there: the connection is refused.",
    Trouble.TLS: "TLS does not come about, and a browser would not go on either",
    Trouble.CONNECT: "The server cannot be reached",
    Trouble.CLOSED: "Whoever listens there took the request and closed the connection without an answer",
    Trouble.SILENT: "No answer came",
    Trouble.REDIRECTS: "It is redirected again and again; a browser gives up.",
}
REFUSALS = {
    401: "It wants a login: give it with --header 'Authorization: ...' or --header 'Cookie: ...'.",
    403: "It is forbidden: does it want a login? Give it with --header.",
    404: "There is nothing at this path.",
    405: "GET is not allowed there.",
    429: "There are too many streams or requests.",
    503: "The service is not available now.",
}
GATEWAY = {502: "cannot reach the application", 504: "waited for the application too long"}


def about_trouble(observation: Observation) -> Iterator[Finding]:
    """Say why there was no answer."""
    trouble = observation.trouble
    if trouble is None:
        return
    text = TROUBLES[trouble]
    if trouble is Trouble.SILENT:
        text += (
            f" within {observation.ended_at:.0f} s: the application does not answer, or a proxy holds"
            " back all of an answer that does not end."
        )
    elif not text.endswith("."):
        text += f": {observation.detail}" if observation.detail else "."
    faulty = trouble in (Trouble.REDIRECTS, Trouble.CLOSED)
    if observation.redirects and trouble is not Trouble.REDIRECTS:
        # Somebody did answer, and sends browsers to where nobody does.
        faulty = True
        text = f"It is redirected to {observation.redirects[-1].target}. {text}"
        if _leaves_host(observation.redirects[-1]):
            text += " (A proxy that keeps Host to itself has applications redirect to their own address.)"
    yield (fault if faulty else unexamined)(trouble.value, text)


def about_redirects(observation: Observation) -> Iterator[Finding]:
    """Say where it was sent on to, and what that costs."""
    redirects = observation.redirects
    if not redirects or observation.trouble is Trouble.REDIRECTS:
        return
    first, target = redirects[0], redirects[-1].target
    if any(_leaves_tls(redirect) for redirect in redirects):
        yield fault(
            "redirect-to-http",
            f"It is redirected from https to {target}, which a browser does not load in a page over TLS. The "
            "application takes the request for http: open the stream at its very path (with the slash at"
            " its end), and have the server trust X-Forwarded-Proto (uvicorn: --forwarded-allow-ips).",
        )
        return
    if not observation.is_stream:
        # Where it leads is told by what came from there.
        return
    yield warning(
        "redirect",
        f"It is redirected ({first.status}) to {target}. EventSource follows, and does so again with"
        " each reconnect: open that URL at once.",
    )


def about_refusal(observation: Observation) -> Iterator[Finding]:
    """Say who refused and what a browser does about it, if it was refused."""
    answer = observation.answer
    if answer is None:
        return
    if answer.status == 200:
        yield from _soft_refusal(observation)
        return
    if answer.status in GATEWAY:
        yield fault("gateway", f"{answer.status}: a proxy {GATEWAY[answer.status]}.")
        return
    detail = _problem(observation)
    who = "The application answers" if detail is not None else "The answer is"
    text = f"{who} {answer.status}. {REFUSALS.get(answer.status, '')}".strip()
    if detail:
        text += f" It says: {detail}"
    if answer.status == 204:
        text = "204: the application ends it here, and EventSource stops for good, as it is meant to."
    else:
        text += " EventSource stops for good at any status but 200."
    if (after := answer.get("retry-after")) is not None:
        text += f" Retry-After: {after}."
    yield unexamined("refused", text)


def about_type(observation: Observation) -> Iterator[Finding]:
    """Say what came in place of an event stream."""
    answer = observation.answer
    if answer is None or answer.status != 200 or observation.is_stream:
        return
    kind = answer.media_type or "nothing said"
    text = f"The type of the answer is {kind}, not text/event-stream: EventSource stops for good."
    if kind == "text/html":
        page = text_of(observation.body).lower()
        text += " It is a page"
        text += ", a login it seems" if "password" in page or "login" in answer.url else ""
        text += f", after a redirect to {answer.url}." if observation.redirects else "."
    yield fault("wrong-type", text)


def about_origin(observation: Observation, origin: str | None) -> Iterator[Finding]:
    """Say whether pages of another origin may read it."""
    answer = observation.answer
    if origin is None or answer is None or answer.status != 200:
        return
    allowed = answer.get("access-control-allow-origin")
    if allowed not in (origin, "*"):
        given = f"it is {allowed}" if allowed else "there is none"
        yield fault(
            "cors",
            f"A page of {origin} may not read it: Access-Control-Allow-Origin has to be that origin,"
            f" and {given}. In the application: LivePush(..., cors=Cors({{{origin!r}}})).",
        )
    elif answer.get("access-control-allow-credentials") == "true" and allowed == origin:
        yield note("cors-allowed", f"Pages of {origin} may read it, with cookies.")
    else:
        yield note("cors-allowed", f"Pages of {origin} may read it, without cookies.")


def about_version(answer: Answer | None, *, http2_tried: bool) -> Iterator[Finding]:
    """Say what the HTTP version means for a browser."""
    if answer is None or answer.status != 200:
        return
    if answer.http_version == "HTTP/2":
        yield note("http-2", "HTTP/2: a browser may have many streams at a time.")
        return
    text = f"{answer.http_version}: a browser opens at most six connections to an origin, over all its tabs."
    if answer.url.startswith("https:") and not http2_tried:
        text += " HTTP/2 was not tried, for want of the package h2."
    if "h3" in (answer.get("alt-svc") or ""):
        text += " HTTP/3 is offered (Alt-Svc), and browsers may take it."
    yield note("http-1", text)


def _soft_refusal(observation: Observation) -> Iterator[Finding]:
    for name, data in observation.others:
        if name == "livepush.refused":
            facts = _object(data)
            said = f" It says: {facts['detail']}" if "detail" in facts else ""
            yield unexamined(
                "refused-softly",
                f"The application refuses ({facts.get('reason', 'no reason')}, status"
                f" {facts.get('status', '?')}), and EventSource will come back.{said}",
            )


def _problem(observation: Observation) -> str | None:
    """Return the detail of a problem that the application sent; None if it is somebody else's answer."""
    answer = observation.answer
    if answer is None or answer.media_type != "application/problem+json":
        return None
    return str(_object(text_of(observation.body)).get("detail", ""))


def _object(text: str) -> dict[str, object]:
    try:
        value: object = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _leaves_host(redirect: Redirect) -> bool:
    return urlsplit(redirect.source).netloc != urlsplit(redirect.target).netloc


def _leaves_tls(redirect: Redirect) -> bool:
    return redirect.source.startswith("https:") and redirect.target.startswith("http:")
