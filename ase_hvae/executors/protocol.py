"""What every executor offers, and the bounded queue of calls that they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol, Self


@dataclass(frozen=True)
class Lost:
    """Instead of a result: the worker ended or overran its time.

    Attributes
    ----------
    reason : str
        What happened, in words.
    """

    reason: str


class Executor(Protocol):
    """Runs methods of one object, made once per worker, over many arguments."""

    def map(self, task: str, arguments: Iterable[Any], *, ordered: bool = False) -> Iterator[tuple[Any, Any]]:
        """Argument and result of method `task` for each argument, in order or as results arrive.

        Parameters
        ----------
        task : str
            Name of the method.
        arguments : iterable
            Its single argument, one per call; may be endless, a few calls are prepared ahead.
        ordered : bool
            Keep the order of the arguments.

        Yields
        ------
        argument, result
            A :class:`Lost` instead of the result if the worker ended or overran its time. Exceptions of the method
            are raised.
        """

    def __enter__(self) -> Self:
        """Hold the workers."""

    def __exit__(self, *_: object) -> None:
        """Let the workers go; calls that are waiting are cancelled."""


def stream(
    submit: Callable[[Any], Future[Any]],
    collect: Callable[[Future[Any]], Any],
    arguments: Iterable[Any],
    *,
    ahead: int,
    ordered: bool,
) -> Iterator[tuple[Any, Any]]:
    """Submit calls, at most `ahead` at a time, and yield arguments with results."""
    waiting: deque[tuple[Future[Any], Any]] = deque()
    for argument in arguments:
        waiting.append((submit(argument), argument))
        if len(waiting) >= ahead:
            yield _next(waiting, collect, ordered=ordered)
    while waiting:
        yield _next(waiting, collect, ordered=ordered)


def _next(
    waiting: deque[tuple[Future[Any], Any]], collect: Callable[[Future[Any]], Any], *, ordered: bool
) -> tuple[Any, Any]:
    """Remove a finished call, the first one if ordered."""
    if not ordered:
        done = wait([future for future, _ in waiting], return_when=FIRST_COMPLETED).done
        place = next(number for number, (future, _) in enumerate(waiting) if future in done)
        waiting.rotate(-place)
    future, argument = waiting.popleft()
    return argument, collect(future)
