"""Tasks in worker processes on this machine: a worker that dies or hangs is replaced, only its call is lost."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Self

from pebble import ProcessExpired, ProcessPool

from ase_hvae.executors.protocol import Lost, stream

MOST_BREAKS = 3  # of the pool, one after the other without a result between
_target: Any = None


class ProcessExecutor:
    """Runs methods of an object that is made once per worker process; each process has one thread.

    Parameters
    ----------
    make : callable
        Makes the object whose methods are the tasks; picklable.
    n_workers : int
        Processes.
    time_limit : float
        Seconds that a call may take, 0 for no limit.
    """

    def __init__(self, make: Callable[[], Any], n_workers: int, *, time_limit: float = 0.0) -> None:
        self.n_workers = n_workers
        self.time_limit = time_limit
        self._open = functools.partial(ProcessPool, n_workers, context=_Spawn(), initializer=_start, initargs=[make])
        self._pool = self._open()
        self._calls: dict[Future[Any], tuple[ProcessPool, str, Any]] = {}
        self._n_breaks = 0

    def map(self, task: str, arguments: Iterable[Any], *, ordered: bool = False) -> Iterator[tuple[Any, Any]]:
        """See :class:`ase_hvae.executors.protocol.Executor`."""
        submit = functools.partial(self._submit, task)
        yield from stream(submit, self._collect, arguments, ahead=2 * self.n_workers, ordered=ordered)

    def _submit(self, task: str, argument: Any) -> Future[Any]:
        schedule = functools.partial(self._schedule, task, argument)
        try:
            future = schedule()
        except RuntimeError:  # the pool broke while nobody waited for a call
            self._replace_pool()
            future = schedule()
        self._calls[future] = self._pool, task, argument
        return future

    def _schedule(self, task: str, argument: Any) -> Future[Any]:
        return self._pool.schedule(_run, args=[task, argument], timeout=self.time_limit or None)

    def _collect(self, future: Future[Any]) -> Any:
        pool, task, argument = self._calls.pop(future)
        try:
            result = future.result()
        except TimeoutError:
            result = Lost(f"no result after {self.time_limit:g} s")
        except ProcessExpired as error:
            result = Lost(f"its worker process ended with {_cause(error.exitcode)}")
        except BrokenProcessPool:  # pebble gives up all calls if a worker ends before it has told which one it has
            if pool is self._pool:
                if self._n_breaks == MOST_BREAKS:
                    raise
                self._n_breaks += 1
                self._replace_pool()
            return self._collect(self._submit(task, argument))
        self._n_breaks = 0
        return result

    def _replace_pool(self) -> None:
        self._close()
        self._pool = self._open()

    def _close(self) -> None:
        self._pool.stop()
        self._pool.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


class _Process(SpawnProcess):
    """A spawned process with one thread that does not run the user's script again.

    It would import the main script unless there is none; so scripts need no ``if __name__ == "__main__"``.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _clean_start():
            return SpawnProcess._Popen(process_obj)


class _Spawn(SpawnContext):
    Process = _Process


@contextmanager
def _clean_start() -> Iterator[None]:
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
    global _target
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _target = make()


def _end_with_parent() -> None:
    """Leave no worker behind when the main process is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(task: str, argument: Any) -> Any:
    return getattr(_target, task)(argument)


def _cause(exitcode: int) -> str:
    """Exit status or signal in words."""
    if exitcode >= 0:
        return f"exit status {exitcode}"
    try:
        return f"signal {-exitcode} ({signal.Signals(-exitcode).name})"
    except ValueError:
        return f"signal {-exitcode}"
