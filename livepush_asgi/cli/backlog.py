"""Backlog: the newest lines of all files, for pages that open later or have missed some."""

from collections import deque


class Backlog:
    """Keeps the newest records, each the JSON text of one event, within bounds.

    Whole records go when there are too many lines or characters; the newest always stays.
    """

    def __init__(self, max_lines: int, max_characters: int) -> None:
        self._records: deque[tuple[str, int]] = deque()
        self._max_lines, self._max_characters = max_lines, max_characters
        self._lines = self._characters = 0

    def add(self, record: str, lines: int) -> None:
        """Add a record that holds so many lines."""
        self._records.append((record, lines))
        self._lines += lines
        self._characters += len(record)
        while len(self._records) > 1 and self._too_much():
            dropped, count = self._records.popleft()
            self._lines -= count
            self._characters -= len(dropped)

    def as_json(self) -> str:
        """Return the records as one JSON array, the oldest first."""
        return f"[{','.join(record for record, _ in self._records)}]"

    def _too_much(self) -> bool:
        return self._lines > self._max_lines or self._characters > self._max_characters
