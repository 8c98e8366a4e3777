"""The doctor: measures what happens to events between an application and a browser, and explains it.

Start with `examine.py`, which sends requests and gathers observations (`observation.py`), and with
`findings.py`, which explains them with the help of `proxies.py`. `report.py` writes the result.
"""

import anyio

from .examine import Question, examine, header_of
from .findings import Diagnosis
from .report import as_json, as_text

__all__ = ["Question", "examine_and_report", "header_of"]


def examine_and_report(question: Question, *, json: bool) -> tuple[str, int]:
    """Examine a URL, and return the report and the exit status. Takes some seconds and `question.idle`."""
    evidence = anyio.run(examine, question)
    diagnosis = Diagnosis(evidence)
    report = (as_json if json else as_text)(question.url, evidence, diagnosis)
    return report, diagnosis.status
