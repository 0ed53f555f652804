"""Independent tasks in this process or in worker processes, results as they arrive."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

_state: Any = None


class Workers:
    """Run methods of one object, made once per process, over many arguments.

    Parameters
    ----------
    make : callable
        Makes the object whose methods are the tasks; must be picklable if `n_workers` > 1.
    n_workers : int
        1 works in this process; more starts that many processes, each on one thread.
    """

    def __init__(self, make: Callable[[], Any], n_workers: int) -> None:
        self.n_workers = n_workers
        self._local = make() if n_workers == 1 else None
        self._pool: ProcessPoolExecutor | None = None
        if n_workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start, initargs=(make,))
            with _clean_start():
                for _ in range(n_workers):  # a process starts when a task finds none idle
                    self._pool.submit(os.getpid)

    def map(self, task: str, arguments: Iterable[Any], *, ordered: bool = False) -> Iterator[Any]:
        """Results of method `task` for each argument, in order or as they arrive.

        Parameters
        ----------
        task : str
            Name of the method.
        arguments : iterable
            Its single argument, one per call; with `ordered` it may be endless, a few calls are prepared ahead.
        ordered : bool
            Keep the order of the arguments.
        """
        if self._pool is None:
            yield from map(getattr(self._local, task), arguments)
        elif ordered:
            yield from self._map_ordered(task, iter(arguments))
        else:
            for future in as_completed([self._pool.submit(_run, task, argument) for argument in arguments]):
                yield future.result()

    def _map_ordered(self, task: str, arguments: Iterator[Any]) -> Iterator[Any]:
        assert self._pool is not None
        ahead = []
        for argument in arguments:
            ahead.append(self._pool.submit(_run, task, argument))
            if len(ahead) > self.n_workers:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def count_workers(requested: int) -> int:
    """`requested` worker processes, or one per usable core for 0."""
    if requested:
        return requested
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _clean_start() -> Iterator[None]:
    """Let new processes have one thread each, and not run the user's script again.

    A spawned process imports the main script unless there is none; so scripts need no ``if __name__ == "__main__"``.
    """
    main, threads = sys.modules["__main__"], os.environ.get("OMP_NUM_THREADS")
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        del os.environ["OMP_NUM_THREADS"]
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads


def _start(make: Callable[[], Any]) -> None:
    global _state
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state = make()


def _end_with_parent() -> None:
    """Leave no worker behind when the main process is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(task: str, argument: Any) -> Any:
    return getattr(_state, task)(argument)
