"""Tasks on Dask: a local cluster, or a scheduler somewhere; only arguments and results travel."""

from __future__ import annotations

import functools
import hashlib
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Self

from distributed import Client, LocalCluster
from distributed.scheduler import KilledWorker

from ase_hvae.errors import ConfigError
from ase_hvae.executors.protocol import Lost, stream

_CONNECT = 30  # seconds to wait for a scheduler
_targets: dict[str, Any] = {}
_lock = threading.Lock()


class DaskExecutor:
    """Runs methods of an object that is made once per worker of a Dask cluster.

    A call whose worker ends is tried again on others, as often as Dask's setting
    ``distributed.scheduler.allowed-failures`` says; then it is lost. There is no time limit.

    Parameters
    ----------
    make : callable
        Makes the object whose methods are the tasks; picklable, its modules installed where the workers are.
    address : str or None
        Of the scheduler; None starts a cluster on this machine.
    n_workers : int
        Processes of that cluster, one thread each.

    Raises
    ------
    ConfigError
        If the scheduler does not answer.
    """

    def __init__(self, make: Callable[[], Any], address: str | None, n_workers: int) -> None:
        self._make = pickle.dumps(make)
        self._key = hashlib.sha256(self._make).hexdigest()
        self.cluster = None
        if address is None:
            self.cluster = LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0")
        try:
            self.client = Client(self.cluster or address, timeout=_CONNECT, set_as_default=False)
        except OSError as error:
            raise ConfigError(f"no Dask scheduler answers at {address} within {_CONNECT} s: {error}") from error

    def map(self, task: str, arguments: Iterable[Any], *, ordered: bool = False) -> Iterator[tuple[Any, Any]]:
        """See :class:`ase_hvae.executors.protocol.Executor`."""
        ahead = 2 * max(1, sum(self.client.nthreads().values()))
        yield from stream(functools.partial(self._submit, task), _collect, arguments, ahead=ahead, ordered=ordered)

    def _submit(self, task: str, argument: Any) -> Future[Any]:
        """The call as a future of the standard library, for which Dask's own are no substitute."""
        future: Future[Any] = Future()
        remote = self.client.submit(_run, self._key, self._make, task, argument, pure=False)

        def finish(done: Any) -> None:
            """Hand the outcome of the remote call to the future that the caller holds."""
            try:
                future.set_result(done.result())
            except BaseException as error:  # whatever the task raised belongs to the caller
                future.set_exception(error)

        remote.add_done_callback(finish)
        future.remote = remote  # type: ignore[attr-defined]  # Dask drops calls that nobody holds
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.cluster is not None:
            self.cluster.close()


def _collect(future: Future[Any]) -> Any:
    try:
        return future.result()
    except KilledWorker as error:
        return Lost(f"{error.allowed_failures + 1} Dask workers ended with it")


def _run(key: str, make: bytes, task: str, argument: Any) -> Any:
    with _lock:
        if key not in _targets:
            _targets.clear()  # of an earlier run
            _targets[key] = pickle.loads(make)()
    return getattr(_targets[key], task)(argument)
