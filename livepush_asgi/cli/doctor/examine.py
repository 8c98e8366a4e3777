"""Examine: asks for the probes that explain what happens to a stream, and gathers the evidence."""

from dataclasses import replace
from urllib.parse import urlsplit

from ...http.probe import BOUNDS, ProbePlan
from .client import DECODED, ENCODINGS, Client, Question
from .observation import End, Evidence, Observation
from .pace import SHORTEST_SILENCE, is_disturbed, is_held

# Small events: close enough to show a hold of 0.2 s, and not so close that a busy machine looks like one.
EVENTS, INTERVAL = 40, 50
# After events were held back: 64 kB, to see how many bytes have to come together.
LARGE_EVENTS = ProbePlan(32, 50, 500, 2048)
# Some proxies compress only answers that begin with a large piece. This plan begins with one. If the answer
# is compressed, the first probe is repeated with events of this size.
LARGE_START, LARGE_START_SIZE = ProbePlan(1, 10, 0, 2048), 640
# How often a measurement is tried while this machine is too busy.
TRIES = 3
# How often a hold has to be seen again: a busy machine may look like one once, or twice.
REPETITIONS = 2


async def examine(question: Question) -> Evidence:
    """Ask for a probe. Ask again in other ways if it came late, was cut, or was refused."""
    client, plan, encodings = Client(question), first_plan(question), ENCODINGS
    first = await _measure(client, plan, encodings)
    unread = None if first.compression in (None, *DECODED) else first.compression
    if unread is not None:
        encodings = tuple(each for each in ENCODINGS if each != unread)
        first = await _measure(client, plan, encodings)
    large_starts = False
    if first.probed and first.compression is None:
        large_starts = (await client.ask(LARGE_START, encodings)).compression is not None
        if large_starts:
            first = await _measure(client, replace(plan, size=LARGE_START_SIZE), encodings)
    found = Evidence(first=first, unread_encoding=unread, large_starts_compressed=large_starts)
    found.origin, found.idle = question.origin, question.idle
    found.repeated = await _repeat(client, first, encodings)
    held = is_held(found.latest)
    if held and first.compression is not None:
        found.uncompressed = await _measure(client, found.latest.plan, ())
    if held:
        found.large = await _measure(client, LARGE_EVENTS, encodings)
    if first.cut_for_silence:
        found.steady = await client.ask(_steady_plan(1.2 * first.ended_at, first.silence), encodings)
    if first.answer is not None and first.answer.status in (400, 401, 403, 404, 429):
        # Perhaps only the probe is refused.
        found.ordinary = await client.ask(None, encodings)
    if held or first.cut or first.end is End.SILENT:
        # Vite leaves no sign on an answer, and the advice depends on it.
        found.vite = await client.finds(_vite_url(question.url), "text/javascript")
    return found


def first_plan(question: Question) -> ProbePlan:
    """Return the plan of the first probe: small events, and then the silence to test."""
    return ProbePlan(EVENTS, INTERVAL, max(round(1000 * question.idle), SHORTEST_SILENCE))


def _steady_plan(seconds: float, silence: float) -> ProbePlan:
    """Return a plan that takes `seconds`, within the bounds, and is never silent for as long as `silence`."""
    interval = int(min(max(silence / 4 * 1000, 100), BOUNDS["interval"][1]))
    return ProbePlan(min(max(int(seconds * 1000 / interval), 1), BOUNDS["events"][1]), interval, 0)


async def _measure(client: Client, plan: ProbePlan | None, encodings: tuple[str, ...]) -> Observation:
    """Ask for a probe, and again if this program stalled meanwhile."""
    for _ in range(TRIES - 1):
        observation = await client.ask(plan, encodings)
        if not is_disturbed(observation):
            return observation
    return await client.ask(plan, encodings)


async def _repeat(client: Client, first: Observation, encodings: tuple[str, ...]) -> list[Observation]:
    """After a hold, measure again without the long silence, until events come in time, or twice."""
    repeated: list[Observation] = []
    while first.plan is not None and is_held((first, *repeated)[-1]) and len(repeated) < REPETITIONS:
        plan = replace(first.plan, idle=min(first.plan.idle, SHORTEST_SILENCE))
        repeated.append(await _measure(client, plan, encodings))
    return repeated


def _vite_url(url: str) -> str:
    """Return a URL at which Vite's development server answers, and no other server."""
    return urlsplit(url)._replace(path="/@vite/client", query="", fragment="").geturl()
