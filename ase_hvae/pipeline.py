"""From the trained model to ranked crystals: the one place where the stages are put together."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ase.calculators.calculator import BaseCalculator

import ase_hvae
from ase_hvae.calculators import CalculatorRecord
from ase_hvae.candidate import Candidate
from ase_hvae.config import GenerateConfig, differences, read_config, write_config
from ase_hvae.database import CandidateDatabase, RunFolder, check_url, without_password
from ase_hvae.errors import ConfigError
from ase_hvae.executors import Executor, LocalExecutor, Lost, check_executor, count_workers, open_executor
from ase_hvae.funnel import Funnel
from ase_hvae.progress import track
from ase_hvae.ranking import by_energy, rank
from ase_hvae.replicas import Replica
from ase_hvae.summary import summarize

logger = logging.getLogger(__name__)

TIME_LIMIT = 600.0  # seconds for one call of a stage with the native potential, which takes seconds
WRITTEN = 64  # candidates in one transaction


def generate(
    config: GenerateConfig | None = None,
    *,
    out: str | Path = "hvae_run",
    calc: BaseCalculator | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> list[Candidate]:
    """Generate new crystals: sample, decode, reconstruct, symmetrize, relax, compare, check phonons, rank, store.

    Unstable crystals have children along their softest modes, which go through the same stages from relaxation on.

    Parameters
    ----------
    config : GenerateConfig, optional
        Options of all stages; the defaults if left out.
    out : str or Path
        Run folder: ``candidates.db``, ``summary.json``, ``config.toml``, ``structures/*.cif``, ``log.txt``. Programs
        such as VASP run in ``calculator_runs/`` inside it, each process in a folder of its own.
    calc : Calculator, optional
        ASE calculator to use instead of ``config.run.calculator``; the run then stays in this process.
    resume, overwrite : bool
        Go on with the run in `out`, or replace it; without either a folder that holds a run is refused.
    **options
        Single options by name, for instance ``seed=1, n=20, fmax=0.02``.

    Returns
    -------
    list of Candidate
        The ranked candidates, lowest energy first; all others are in the database.

    Raises
    ------
    ConfigError, RunFolderError, ModelError, StructureError, CalculatorSetupError
        Before any work, and before anything is written, if the request cannot be met.
    """
    database, ranked = run(config, out=out, calc=calc, resume=resume, overwrite=overwrite, **options)
    return list(database.iterate(ranked))


def run(
    config: GenerateConfig | None = None,
    *,
    out: str | Path = "hvae_run",
    calc: BaseCalculator | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> tuple[CandidateDatabase, list[int]]:
    """Do what :func:`generate` does and return the database and the indices of the ranked candidates, lowest first.

    No more than some hundred candidates are in memory at a time, however many the run has.
    """
    folder = RunFolder(out, resume=resume, overwrite=overwrite)
    config, url = _resolved(folder, config, options, resume=resume)
    check_executor(config.run.executor)
    funnel = Funnel.open(config, calc, directory=folder.calculator_runs)
    logger.debug(
        "%d crystals are not new", len(funnel.library.crystals)
    )  # read here, so that bad files are refused now
    with folder.locked():
        if resume:
            _check_calculator(folder, funnel.record)
        else:
            folder.clear(url)
            write_config(config, folder.config)
            folder.write_calculator(asdict(funnel.record))
        with _log_to(folder.log), folder.opened_store(url) as store:
            logger.info("ase-hvae %s, seed %d, calculator %s", ase_hvae.__version__, config.run.seed, funnel.record)
            for refusal in funnel.record.refused:
                logger.info("calculator not used: %s", refusal)
            with _executor(funnel, folder, share=calc is None) as workers:
                database = CandidateDatabase(store)
                return database, _stages(funnel, workers, database, folder)


def _stages(funnel: Funnel, workers: Executor, database: CandidateDatabase, folder: RunFolder) -> list[int]:
    """All stages, one after the other; each picks what it has to do from the database, so that a run can go on."""
    config = funnel.source.config
    clock = _Clock()
    with clock("reference"):
        reference = funnel.reference()
    with clock("reconstruct"):
        counts = _reconstruct(funnel, workers, database, folder)
    for depth in range(config.phonons.children_depth + 1):  # the crystals, their children, the children of those
        with clock("relax"):
            waiting = [e.index for e in database.entries(depth=depth, status="pending", stage="symmetrize")]
            _advance("relax", waiting, workers, database, together=funnel.relax_together)
        with clock("compare"):
            _write(database, funnel.compare(database.iterate(_rising(database, depth)), reference))
        with clock("phonons"):
            _advance("phonons", _for_phonons(config, database, depth), workers, database)
    with clock("phonons"):
        for depth in range(config.phonons.children_depth):  # what the children made new again
            _advance("phonons_alone", _for_phonons(config, database, depth), workers, database)
    with clock("elasticity"):
        _advance("elasticity", _for_elasticity(config, database), workers, database)
    pending = [entry.index for entry in database.entries(status="pending")]
    _write(database, (candidate.evolve(status="ranked", stage="rank") for candidate in database.iterate(pending)))
    ranked = [entry.index for entry in rank(database.entries(status="ranked"))]
    folder.write_structures(database.iterate(ranked))
    everything = database.iterate(entry.index for entry in database.entries())
    folder.write_summary(summarize(funnel, everything, counts, reference, clock.seconds))
    return ranked


def _executor(funnel: Funnel, folder: RunFolder, *, share: bool) -> Executor:
    """Workers that open the same run; a calculator handed in by the user stays in this process."""
    run = funnel.source.config.run
    n_workers = count_workers(run.workers)
    if not share or (n_workers == 1 and run.executor == "processes"):
        return LocalExecutor(funnel)
    name, directory = funnel.record.name, folder.calculator_runs
    make = functools.partial(Funnel.open, funnel.source.config, calculator=name, directory=directory)
    limit = run.time_limit
    if limit is None:
        limit = TIME_LIMIT if name == "maise" else 0.0
    return open_executor(run.executor, make, n_workers, time_limit=limit)


def _reconstruct(funnel: Funnel, workers: Executor, database: CandidateDatabase, folder: RunFolder) -> dict[str, int]:
    """Fill the database, replica after replica, until it holds the wanted number of candidates."""
    finished = folder.finished_replicas()
    missing = funnel.source.config.run.n - sum(entry.replica in finished for entry in database.entries(depth=0))
    if missing > 0:
        replicas = (replica for replica in funnel.source.replicas() if replica.index not in finished)
        for replica, candidates, counts in _until(_found(workers, replicas), missing):
            if candidates:
                database.write(*candidates)
            finished[replica.index] = counts | {"candidates": len(candidates)}
            folder.add_finished_replica(replica.index, finished[replica.index])
    total: Counter[str] = Counter()
    for counts in finished.values():
        total.update(counts)
    return {"replicas": len(finished), **total}


Found = tuple[Replica, list[Candidate], dict[str, int]]


def _found(workers: Executor, replicas: Iterable[Replica]) -> Iterator[Found]:
    """Candidates of replicas in order; a replica whose worker is lost is tried once more, alone."""
    for replica, result in workers.map("crystals", replicas, ordered=True):
        if isinstance(result, Lost):
            _, result = next(iter(workers.map("crystals", [replica])))
        if isinstance(result, Lost):
            logger.warning("replica %d gives nothing: %s", replica.index, result.reason)
            result = replica, [], {"lost_replicas": 1}
        yield result


def _until(results: Iterator[Found], wanted: int) -> Iterator[Found]:
    """Pass results on until they hold `wanted` candidates, cutting the last one; progress counts candidates."""
    missing = wanted
    with track("reconstruct", wanted) as advance:
        for replica, candidates, counts in results:
            candidates = candidates[:missing]
            missing -= len(candidates)
            yield replica, candidates, counts
            advance(len(candidates))
            if missing == 0:
                return
    logger.warning("the replicas are used up: %d of %d candidates found; raise n_replicas", wanted - missing, wanted)


def _advance(
    task: str, waiting: Sequence[int], workers: Executor, database: CandidateDatabase, *, together: int = 1
) -> None:
    """Apply a task to candidates, some together, writing them as they come back.

    Those whose worker is lost are tried once more, each alone, so that only the one that is to blame fails.
    """
    with track(task.removesuffix("_alone"), len(waiting)) as advance:

        def record(part: Sequence[Candidate], finished: Sequence[Candidate]) -> None:
            """Write candidates that a part has come to, and count the part as done."""
            for candidate in finished:
                if candidate.failure:
                    logger.info("candidate %d failed in %s: %s", candidate.index, task, candidate.failure)
            database.write(*finished)
            advance(len(part))

        lost: list[int] = []
        for part, result in workers.map(task, _batched(database.iterate(waiting), together)):
            if isinstance(result, Lost):
                logger.warning("%d candidates are tried again in %s: %s", len(part), task, result.reason)
                lost += [candidate.index for candidate in part]
            else:
                record(part, result)
        for part, result in workers.map(task, _batched(database.iterate(lost), 1)):
            record(part, [_without(task, part[0], result.reason)] if isinstance(result, Lost) else result)


def _batched(candidates: Iterable[Candidate], size: int) -> Iterator[list[Candidate]]:
    """Lists of `size` candidates, the last one shorter."""
    iterator = iter(candidates)
    while part := list(itertools.islice(iterator, size)):
        yield part


def _without(task: str, candidate: Candidate, reason: str) -> Candidate:
    """The candidate when a stage gave no result; without phonons or elastic tensor it stays in the ranking."""
    if task in ("phonons", "phonons_alone"):
        return candidate.evolve(stage="phonons", phonon_failure=reason)
    if task == "elasticity":
        return candidate.evolve(stage=task, elastic_failure=reason)
    return candidate.failed(task, reason)


def _write(database: CandidateDatabase, candidates: Iterable[Candidate]) -> None:
    for part in _batched(candidates, WRITTEN):
        database.write(*part)


def _rising(database: CandidateDatabase, depth: int) -> list[int]:
    """Relaxed candidates up to a depth, lowest energy first.

    A stage of a run that goes on must see what it saw before the run was stopped, so no deeper ones.
    """
    relaxed = (entry for entry in database.entries() if entry.depth <= depth and entry.energy_per_atom is not None)
    return [index for *_, index in sorted((e.energy_per_atom, e.volume_per_atom, e.index) for e in relaxed)]


def _for_phonons(config: GenerateConfig, database: CandidateDatabase, depth: int) -> list[int]:
    """The lowest candidates of one depth inside the energy window, less those that have been done."""
    window = config.phonons.phonon_window / 1000.0
    pending = database.entries(depth=depth, status="pending")
    near = by_energy([e for e in pending if e.energy_above is not None and e.energy_above <= window])
    lowest = database.iterate(entry.index for entry in near[: config.phonons.n_phonons])
    return [candidate.index for candidate in lowest if not candidate.has_phonons]


def _for_elasticity(config: GenerateConfig, database: CandidateDatabase) -> list[int]:
    """The lowest candidates with stable phonons, less those that have been done."""
    stable = by_energy([entry for entry in database.entries(status="pending") if entry.stable])
    lowest = database.iterate(entry.index for entry in stable[: config.elasticity.n_elastic])
    return [candidate.index for candidate in lowest if not candidate.has_elasticity]


def _resolved(
    folder: RunFolder, config: GenerateConfig | None, options: dict[str, Any], *, resume: bool
) -> tuple[GenerateConfig, str | None]:
    """Options of the run, and the database with its password, which is nowhere written."""
    url = options.get("database", config.run.database if config else None)
    if url is not None:
        options = options | {"database": without_password(url)}
    config = (
        _resumed_config(folder, config, options) if resume else (config or GenerateConfig()).with_options(**options)
    )
    url = url or config.run.database
    if url is not None:
        check_url(url)
    return config, url


def _resumed_config(folder: RunFolder, config: GenerateConfig | None, options: dict[str, Any]) -> GenerateConfig:
    """Configuration of the run in the folder; options given anew must agree with it."""
    stored = read_config(folder.config)
    changed = list(differences(stored.to_dict(), (config or stored).with_options(**options).to_dict()))
    if changed:
        raise ConfigError(f"cannot resume {folder.path} with other options: {'; '.join(changed)}; leave them out")
    return stored


def _check_calculator(folder: RunFolder, record: CalculatorRecord) -> None:
    """Refuse to go on with another calculator than the run began with: their energies have nothing in common."""
    before, after = folder.read_calculator(), json.loads(json.dumps(asdict(record)))
    if before is None:
        folder.write_calculator(asdict(record))
        return
    changed = list(differences({**before, "refused": after["refused"]}, after))
    if changed:
        raise ConfigError(
            f"cannot resume {folder.path}: the calculator is no longer the one that the run began with "
            f"({'; '.join(changed)}); bring that one back, or start the run anew"
        )


class _Clock:
    """Seconds of wall time per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        logger.info("%s: %.1f s", stage, spent)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Append the package's log messages to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("ase_hvae")
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
