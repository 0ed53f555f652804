"""Tasks in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self


class LocalExecutor:
    """Runs methods of an object that is at hand; what crashes or hangs takes this process along.

    Parameters
    ----------
    target : object
        Its methods are the tasks.
    """

    def __init__(self, target: Any) -> None:
        self._target = target

    def map(self, task: str, arguments: Iterable[Any], *, ordered: bool = False) -> Iterator[tuple[Any, Any]]:
        """See :class:`ase_hvae.executors.protocol.Executor`."""
        method = getattr(self._target, task)
        for argument in arguments:
            yield argument, method(argument)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None
