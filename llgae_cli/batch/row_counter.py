"""Messages on how many rows are done."""

import logging
import time

PATIENCE = 5.0  # seconds between two messages

logger = logging.getLogger(__name__)


class RowCounter:
    """Reports on stderr how many of n rows are done, for work that takes more than PATIENCE seconds."""

    def __init__(self, verb: str, n: int) -> None:
        """Start; `verb` is "compressed" or another participle."""
        self._verb, self._n, self._done = verb, n, 0
        self._next = time.monotonic() + PATIENCE

    def add(self, rows: int) -> None:
        """Count `rows` more."""
        self._done += rows
        if time.monotonic() >= self._next and self._done < self._n:
            logger.info("%s %d of %d rows", self._verb, self._done, self._n)
            self._next = time.monotonic() + PATIENCE
