"""Validation of the arguments of LivePush. Each error names the likely mistake and the fix."""

from collections.abc import Callable, Collection, Mapping
from inspect import iscoroutinefunction, signature

from ..brokers import Broker
from ..dialects import Dialect
from ..grant import public
from ..http.authorize import SOFT_CAUSES
from ..http.cors import Cors
from ..settings import DrainPolicy, Limits, Timing
from ..slots import Slots
from ..wire.reasons import RefusalCause

# The class of the value, by argument of LivePush.
_KINDS: Mapping[str, type] = {"timing": Timing, "limits": Limits, "drain": DrainPolicy, "cors": Cors}

_HOOK_ARGUMENTS = {"on_open": ("grant",), "on_end": ("grant", "reason", "duration", "sent")}


def check_broker(broker: object) -> None:
    """Raise TypeError if this is no broker."""
    if isinstance(broker, type):
        raise TypeError(f"a broker is an object, and {broker.__name__} is a class: {broker.__name__}(...)")
    if not isinstance(broker, Broker):
        hint = "; LivePush takes the broker first, then authorize" if callable(broker) else ""
        raise TypeError(f"{type(broker).__name__} is no Broker: it needs `publish` and `subscribe`{hint}")


def check_callbacks(authorize: object, probe: object) -> None:
    """Raise TypeError if `authorize` or `probe` is not callable."""
    if authorize is public:
        raise TypeError("public is called with the channels that everybody gets: public('news')")
    if not callable(authorize):
        raise TypeError(
            f"authorize is a function that returns a Grant or a Refusal, not {authorize!r:.100}; "
            "to grant channels to every client: public(...)"
        )
    if probe is not None and not callable(probe):
        raise TypeError(
            f"probe is a function that says who may probe, not {probe!r:.100}; "
            "to allow all: lambda request: True"
        )


def check_authorize_run(authorize_run: object) -> None:
    """Raise TypeError if this cannot be called with a request and a run."""
    if not callable(authorize_run):
        raise TypeError(
            "authorize_run is a function that returns a RunAccess or a Refusal, not "
            f"{authorize_run!r:.100}; to let everybody read: lambda request, run: RunAccess()"
        )
    if not _takes(authorize_run, 2):
        raise TypeError(
            "authorize_run is called as authorize_run(request, run), and "
            f"{authorize_run!r:.100} does not take that"
        )


def check_dialect(dialect: object) -> None:
    """Raise TypeError if this is neither a Dialect nor None."""
    if dialect is not None and not isinstance(dialect, Dialect):
        hint = "; call the function: ai_sdk()" if callable(dialect) else ""
        raise TypeError(f"dialect is a Dialect, such as ai_sdk(), not {dialect!r:.100}{hint}")


def check_hooks(**hooks: object) -> None:
    """Raise TypeError for a hook that is no plain function, or does not take its arguments."""
    for name, hook in hooks.items():
        if hook is None:
            continue
        if not callable(hook):
            raise TypeError(f"{name} is a function, not {hook!r:.100}")
        if iscoroutinefunction(hook):
            raise TypeError(
                f"{name} is a plain function, since a stream does not wait for it, and {hook!r:.100} is "
                "asynchronous: put what it has to do into a queue that a task of yours reads"
            )
        if not _takes(hook, len(_HOOK_ARGUMENTS[name])):
            arguments = ", ".join(_HOOK_ARGUMENTS[name])
            raise TypeError(f"{name} is called as {name}({arguments}), and {hook!r:.100} does not take that")


def _takes(function: Callable[..., object], count: int) -> bool:
    """Return whether a function can be called with so many arguments, as far as that is known."""
    try:
        bind = signature(function).bind
    except (TypeError, ValueError):
        # Written in C, without a signature.
        return True
    try:
        bind(*range(count))
    except TypeError:
        return False
    return True


def check_encode(encode: object) -> None:
    """Raise TypeError if this is neither a function that encodes data nor None."""
    if encode is not None and (not callable(encode) or iscoroutinefunction(encode)):
        raise TypeError(
            f"encode is a function that makes text of data, such as orjson.dumps, not {encode!r:.100}; "
            "it is not asynchronous"
        )


def check_slots(slots: object) -> None:
    """Raise TypeError if this is neither a cap nor None."""
    if isinstance(slots, type) or not (slots is None or isinstance(slots, Slots)):
        raise TypeError(
            f"slots is a cap on the streams of each slot key, such as MemorySlotCap(3), not {slots!r:.100}"
        )


def check_settings(**settings: object) -> None:
    """Raise TypeError for a value of the wrong class."""
    for name, value in settings.items():
        kind = _KINDS[name]
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} is a {kind.__name__}(...), not {value!r:.100}")


def check_soft_refusals(causes: Collection[RefusalCause]) -> None:
    """Raise TypeError if this is no collection, and ValueError for a cause that cannot be soft."""
    if isinstance(causes, str) or not isinstance(causes, Collection):
        raise TypeError(f"soft_refusals is a set such as {{RefusalCause.CAP}}, not {causes!r:.100}")
    if unknown := set(causes) - SOFT_CAUSES:
        able = ", ".join(sorted(SOFT_CAUSES))
        raise ValueError(f"soft_refusals may have {able}; not {', '.join(sorted(map(str, unknown)))}")
