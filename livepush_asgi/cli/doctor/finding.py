"""Finding: one thing that was found out, in plain words, and the lines of configuration that mend it."""

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad it is."""

    #: A browser would not get the events, or get them late.
    FAULT = "fault"
    #: It could not be examined.
    OPEN = "open"
    #: It works here, and might not elsewhere.
    WARNING = "warning"
    #: Good to know.
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Remedy:
    """Lines for one program's configuration. `where` names the program and, if need be, the place."""

    where: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """`code` is for programs and stays the same; `text` is for people."""

    severity: Severity
    code: str
    text: str
    remedies: tuple[Remedy, ...] = ()


def fault(code: str, text: str, *remedies: Remedy) -> Finding:
    """Return a fault."""
    return Finding(Severity.FAULT, code, text, remedies)


def unexamined(code: str, text: str, *remedies: Remedy) -> Finding:
    """Return what could not be examined, and why."""
    return Finding(Severity.OPEN, code, text, remedies)


def warning(code: str, text: str, *remedies: Remedy) -> Finding:
    """Return a warning."""
    return Finding(Severity.WARNING, code, text, remedies)


def note(code: str, text: str) -> Finding:
    """Return a note."""
    return Finding(Severity.NOTE, code, text)
