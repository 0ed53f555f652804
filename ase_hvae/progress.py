"""Progress of long loops: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def track(description: str, total: int, *, interval: float = 10.0) -> Iterator[Callable[[int], object]]:
    """Show how many of `total` steps are done; yields the function that adds to them.

    On a terminal (standard error) a bar is drawn; otherwise a line is logged at most every `interval` seconds.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=f"{description:12s}", total=total, leave=False, dynamic_ncols=True) as bar:
            yield bar.update
        return
    done, last = 0, time.monotonic()

    def advance(steps: int) -> None:
        """Count steps, and say how many are done if the last line is old enough."""
        nonlocal done, last
        done += steps
        if time.monotonic() - last >= interval:
            last = time.monotonic()
            logger.info("%s: %d of %d", description, done, total)

    yield advance
