"""Worker processes that may crash, hang or be killed without harm to the run.

Each runs in a session of its own, so that a worker and all programs it started end together: after a limit of time, at
the end, and when this process dies in whatever way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError

import maise_bridge
from maise_bridge.labelling.settings import LabelSettings
from maise_bridge.labelling.worker import encode

START_LIMIT = 600.0  # s until a worker has imported its program
_POLL = 0.5  # s between looks at the CPU time of workers
_PROC = Path("/proc")
_BOOT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "maise_bridge", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
sys.modules["maise_bridge"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from maise_bridge.labelling.worker import main
main(int(sys.argv[2]))
"""  # the package alone becomes importable there, not what is installed beside it
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Limits:
    """How long one structure may take.

    Attributes
    ----------
    wall, cpu : float or None
        Seconds on the clock, and of CPU time of a worker with all its programs; None for no limit.
    """

    wall: float | None = None
    cpu: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("wall", self.wall), ("cpu", self.cpu)):
            if value is not None and not value > 0:
                raise ValueError(f"the {name} time limit is {value:g} s; it must be positive")
        if self.cpu is not None and not (_PROC / "self" / "stat").is_file():
            raise ValueError("CPU time can only be limited where there is /proc, as on Linux; limit wall time instead")


@dataclass(frozen=True, eq=False)
class Answer:
    """What a worker answered about a job.

    Attributes
    ----------
    job : int
        Place of the structure in the list.
    results : mapping or None
        As the worker sent them; None after a failure.
    failure : str or None
        The cause.
    cpu : float
        CPU seconds spent; NaN if not known.
    """

    job: int
    results: Mapping[str, Any] | None
    failure: str | None
    cpu: float


class WorkerPool:
    """Processes that compute structures, each on one thread; a context manager.

    Parameters
    ----------
    settings : LabelSettings
    species : sequence of str
        Chemical symbols that will occur.
    scratch : Path
        Existing folder for logs and for the files of programs.
    n_workers : int
    limits : Limits
    python : str, optional
        Interpreter of the workers, if the program is installed in another one; it needs ASE and numpy.

    Raises
    ------
    CalculatorSetupError
        On entering, if the workers cannot open the program.
    """

    def __init__(
        self,
        settings: LabelSettings,
        species: Sequence[str],
        scratch: Path,
        *,
        n_workers: int = 1,
        limits: Limits | None = None,
        python: str | None = None,
    ) -> None:
        if n_workers < 1:
            raise ValueError(f"{n_workers} workers; at least one is needed")
        self._start = {"calculator": settings.calculator, "options": settings.options, "species": list(species)}
        self._scratch = scratch
        self._limits = limits or Limits()
        self._python = python or sys.executable
        self._n_workers = n_workers
        self._n_started = 0
        self._workers: list[_Worker] = []
        self.identity: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def __enter__(self) -> WorkerPool:
        try:
            for _ in range(self._n_workers):
                self._open_worker()
            while not any(worker.ready for worker in self._workers):
                for _ in self._events():
                    raise AssertionError("an answer without a job")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def map(self, structures: Iterable[Atoms]) -> Iterator[Answer]:
        """Yield the answers about some structures as they come."""
        queue = deque(enumerate(structures))
        while queue or any(worker.job is not None for worker in self._workers):
            n_busy = sum(worker.job is not None for worker in self._workers)
            while len(self._workers) < min(self._n_workers, n_busy + len(queue)):
                self._open_worker()
            for worker in self._workers:
                if queue and worker.ready and worker.job is None:
                    worker.assign(*queue.popleft())
            yield from self._events()

    def _open_worker(self) -> None:
        log = self._scratch / f"worker_{self._n_started}.log"
        start = {**self._start, "scratch": str(self._scratch / f"worker_{self._n_started}")}
        self._n_started += 1
        self._workers.append(_Worker(self._python, start, log))

    def _events(self) -> Iterator[Answer]:
        """Wait until something happens; answers, and failures of workers that died or were killed."""
        wait([worker.output for worker in self._workers], self._patience())
        for worker in list(self._workers):
            for message in worker.receive():
                if worker.ready:
                    yield self._answer(worker, message)
                else:
                    self._greet(worker, message)
            if worker.ended:
                yield from self._bury(worker, worker.last_words())
            elif excess := worker.excess(self._limits):
                yield from self._bury(worker, excess)

    def _patience(self) -> float | None:
        """Seconds until a limit may be reached; None if there is none."""
        busy = [worker for worker in self._workers if not worker.idle]
        limits = [(worker.since, self._limits.wall if worker.ready else START_LIMIT) for worker in busy]
        ends = [since + limit - time.monotonic() for since, limit in limits if limit is not None]
        if self._limits.cpu is not None:
            ends.append(_POLL)
        return max(0.01, min(ends)) if ends else None

    def _greet(self, worker: _Worker, message: Mapping[str, Any]) -> None:
        if "setup_error" in message:
            raise CalculatorSetupError(message["setup_error"].removeprefix("CalculatorSetupError: "))
        if self.identity and self.identity != message["identity"]:
            raise CalculatorSetupError(f"workers differ: {self.identity} and {message['identity']}; was it updated?")
        self.identity, self.versions = message["identity"], message["versions"]
        worker.ready = True

    def _answer(self, worker: _Worker, message: Mapping[str, Any]) -> Answer:
        job, worker.job = worker.job, None
        assert job is not None
        failure = message.get("failure")
        return Answer(job, message if failure is None else None, failure, float(message["cpu"]))

    def _bury(self, worker: _Worker, cause: str) -> Iterator[Answer]:
        self._workers.remove(worker)
        cpu = worker.cpu_seconds()
        worker.kill()
        if not worker.ready:
            raise CalculatorSetupError(f"a worker did not start: {cause}")
        if worker.job is not None:
            yield Answer(worker.job, None, cause, cpu)


class _Worker:
    """One process, its pipes, and the job that it has."""

    def __init__(self, python: str, start: Mapping[str, Any], log: Path) -> None:
        self.log = log
        self.job: int | None = None
        self.ready = self.ended = False
        self.since = time.monotonic()
        self._scratch = Path(start["scratch"])
        self._pending = b""
        self._cpu_before = 0.0
        life, self._life = os.pipe()
        package = str(Path(maise_bridge.__file__).parent)
        try:
            with open(log, "wb") as errors:
                self._process = subprocess.Popen(
                    [python, "-c", _BOOT, package, str(life)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=[life],
                    start_new_session=True,
                    env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                )
        except OSError as error:
            os.close(self._life)
            raise CalculatorSetupError(f"cannot start {python}: {error.strerror}; name another --python") from error
        finally:
            os.close(life)
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self._send(start)

    @property
    def idle(self) -> bool:
        """Whether it waits for a job."""
        return self.ready and self.job is None

    def assign(self, job: int, atoms: Atoms) -> None:
        """Give it a structure."""
        self._cpu_before = self.cpu_seconds(total=True)
        self.job, self.since = job, time.monotonic()
        self._send(encode(atoms))

    def receive(self) -> list[dict[str, Any]]:
        """Messages that came; notes in `ended` whether no more will."""
        while True:
            try:
                chunk = os.read(self.output, 1 << 16)
            except BlockingIOError:
                break
            if not chunk:
                self.ended = True
                break
            self._pending += chunk
        *lines, self._pending = self._pending.split(b"\n")
        return [json.loads(line) for line in lines]

    def excess(self, limits: Limits) -> str:
        """Which limit is exceeded, or empty."""
        if self.idle:
            return ""
        wall = limits.wall if self.ready else START_LIMIT
        if wall is not None and time.monotonic() - self.since > wall:
            return f"time limit: over {wall:g} s on the clock"
        if self.ready and limits.cpu is not None and self.cpu_seconds() > limits.cpu:
            return f"time limit: over {limits.cpu:g} s of CPU time"
        return ""

    def cpu_seconds(self, *, total: bool = False) -> float:
        """CPU seconds of the job so far, programs included, or of the whole session; NaN where there is no /proc."""
        ticks = [line[11:15] for line in _session(self._process.pid).values()]
        if not ticks:
            return float("nan")
        seconds = sum(int(tick) for line in ticks for tick in line) / os.sysconf("SC_CLK_TCK")
        return seconds if total else seconds - self._cpu_before

    def last_words(self) -> str:
        """How it ended, and the end of its log."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        status = self._process.returncode
        if status is None:
            how = "closed its output"
        else:
            how = f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = " | ".join(" ".join(line.split()) for line in lines if line.strip())[-300:]
        return f"the process {how}" + (f"; it said: {said}" if said else "")

    def kill(self) -> None:
        """End the process and all that it started."""
        for pid in _session(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        os.close(self._life)
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # what it no longer reads
            self._process.stdin.close()
        self._process.stdout.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died, which its output will tell
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()


def _session(leader: int) -> dict[int, list[str]]:
    """Living processes of a session: for each the words of /proc/PID/stat from the state on."""
    found = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        try:
            words = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(words[3]) == leader:
            found[int(entry.parent.name)] = words
    return found
