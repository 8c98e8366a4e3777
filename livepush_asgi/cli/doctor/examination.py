"""Examination: asks what has to be asked, and no more, and gathers the evidence."""

from dataclasses import replace

from ...http.probe import ProbePlan
from .client import Client
from .observation import End, Evidence, Observation
from .pace import is_disturbed, is_held, is_weak
from .question import ENCODINGS, STOUT, STOUT_SIZE, WEIGHING, Question, repetition, speaks_http2
from .reading import Unreadable, decoder

# So often something is measured at the most, where this machine is too busy.
TRIES = 3


async def examine(question: Question) -> Evidence:
    """Ask for a probe; again in other ways if it came late or was cut off; for a stream if there was none."""
    client = Client(question)
    first = await _measure(client, question.series, ENCODINGS)
    encodings, unread = ENCODINGS, None
    if (compression := _unread(first)) is not None:
        encodings, unread = tuple(each for each in ENCODINGS if each != compression), compression
        first = await _measure(client, question.series, encodings)
    stout = first.probed and not _compressed(first) and _compressed(await client.ask(STOUT, encodings))
    if stout:
        first = await _measure(client, replace(question.series, size=STOUT_SIZE), encodings)
    repeated = await _repeat(client, first, encodings)
    plain = weighed = busy = ordinary = None
    if repeated and is_held(repeated[-1]):
        if _compressed(first):
            plain = await _measure(client, repeated[-1].plan, ())
        weighed = await _measure(client, WEIGHING, encodings)
    if first.cut_for_silence:
        # Was it the silence, or would it have been cut off then in any case?
        busy = await client.ask(question.busy(1.2 * first.ended_at, first.silence), encodings)
    if _refused(first):
        ordinary = await client.ask(None, encodings)
    return Evidence(
        first=first,
        repeated=repeated,
        plain=plain,
        weighed=weighed,
        busy=busy,
        ordinary=ordinary,
        unread_encoding=unread,
        stout=stout,
        vite=await _find_vite(client, question, first, repeated),
        origin=question.origin,
        idle=question.idle,
        http2_tried=speaks_http2(),
    )


async def _measure(client: Client, plan: ProbePlan | None, encodings: tuple[str, ...]) -> Observation:
    """Ask for a probe, and again if this program could not listen all the time."""
    for _ in range(TRIES - 1):
        observation = await client.ask(plan, encodings)
        if not is_disturbed(observation):
            return observation
    return await client.ask(plan, encodings)


async def _repeat(client: Client, first: Observation, encodings: tuple[str, ...]) -> tuple[Observation, ...]:
    """Ask again until what was late is believed, or comes in time."""
    repeated: list[Observation] = []
    if first.plan is not None and is_held(first):
        plan = repetition(first.plan)
        repeated.append(await _measure(client, plan, encodings))
        if is_held(repeated[0]) and is_weak(repeated[0]):
            repeated.append(await _measure(client, plan, encodings))
    return tuple(repeated)


def _compressed(observation: Observation) -> bool:
    return observation.answer is not None and observation.answer.compression is not None


async def _find_vite(
    client: Client, question: Question, first: Observation, repeated: tuple[Observation, ...]
) -> bool:
    """Look for Vite, which leaves no sign on an answer; only where it matters who it is."""
    if first.cut or first.end is End.SILENT or (repeated and is_held(repeated[-1])):
        return await client.finds(question.vite_url, "text/javascript")
    return False


def _unread(observation: Observation) -> str | None:
    compression = observation.answer.compression if observation.answer is not None else None
    try:
        decoder(compression)
    except Unreadable:
        return compression
    return None


def _refused(observation: Observation) -> bool:
    """Return whether it may have been the probe that was refused, and not the stream."""
    answer = observation.answer
    return answer is not None and answer.status in (400, 401, 403, 404, 429)
