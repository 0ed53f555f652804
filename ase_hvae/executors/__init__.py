"""Independent tasks in this process, in worker processes or on Dask: one protocol, results as they arrive."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ase_hvae.errors import ConfigError
from ase_hvae.executors.local import LocalExecutor
from ase_hvae.executors.processes import ProcessExecutor
from ase_hvae.executors.protocol import Executor, Lost

__all__ = ["Executor", "LocalExecutor", "Lost", "ProcessExecutor", "check_executor", "count_workers", "open_executor"]

SCHEMES = ("tcp://", "tls://", "ucx://")


def check_executor(name: str) -> None:
    """Refuse what names no executor, or one whose package is missing; raises `ConfigError`."""
    if name == "processes":
        return
    if name != "dask" and not name.startswith(SCHEMES):
        raise ConfigError(
            f"executor = {name!r} must be processes, dask or the address of a Dask scheduler such as tcp://host:8786"
        )
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"executor = {name!r} needs Dask ({error}): pip install 'ase-hvae[dask]'") from None


def open_executor(name: str, make: Callable[[], Any], n_workers: int, *, time_limit: float = 0.0) -> Executor:
    """Start workers, or find them.

    Parameters
    ----------
    name : str
        ``processes``, ``dask`` (a local cluster) or the address of a Dask scheduler.
    make : callable
        Makes the object whose methods are the tasks, once in each worker; picklable.
    n_workers : int
        Processes of ``processes`` and ``dask``.
    time_limit : float
        Seconds that a call may take in ``processes``; 0 for no limit. Dask has no such limit.

    Raises
    ------
    ConfigError
        If the name is wrong, Dask is missing or its scheduler does not answer.
    """
    check_executor(name)
    if name == "processes":
        return ProcessExecutor(make, n_workers, time_limit=time_limit)
    from ase_hvae.executors.dask import DaskExecutor

    return DaskExecutor(make, None if name == "dask" else name, n_workers)


def count_workers(requested: int) -> int:
    """`requested` worker processes, or one per usable core for 0."""
    if requested:
        return requested
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
