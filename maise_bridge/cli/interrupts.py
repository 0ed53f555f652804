"""How commands that take long are stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # exit status, as a shell reports SIGINT


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, as a queue sends it at the end of the time, do what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
