"""The doctor: measures the way from an application to a browser, and says in plain words what is wrong."""

import anyio

from .diagnosis import diagnose
from .examination import examine
from .question import Question, header_of
from .report import as_json, as_text

__all__ = ["Question", "consult", "header_of"]


def consult(question: Question, *, json: bool) -> tuple[str, int]:
    """Examine a URL and return the report and the exit status. Takes seconds, and the silence asked for."""
    evidence = anyio.run(examine, question)
    diagnosis = diagnose(evidence)
    report = (as_json if json else as_text)(question.url, evidence, diagnosis)
    return report, diagnosis.status
