"""The course of a rerank: what is checked first, what is computed, and how it is kept."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from ase_hvae import compare, symmetry
from ase_hvae.calculators import CalculatorRecord, get_calculator
from ase_hvae.candidate import Candidate
from ase_hvae.config import CALCULATOR_TABLES, GenerateConfig, config_from_dict, read_config, read_tables
from ase_hvae.database import CandidateDatabase, RunFolder, files_of
from ase_hvae.errors import ConfigError, RelaxationError, RunFolderError, SymmetryError
from ase_hvae.executors import Executor, LocalExecutor, Lost, count_workers, open_executor
from ase_hvae.progress import track
from ase_hvae.ranking import rank
from ase_hvae.rerank.opinion import Evaluator, Opinion, open_evaluator
from ase_hvae.rerank.store import RerankDatabase, Reranked, file_stem, write_labels
from ase_hvae.source import known_crystals

logger = logging.getLogger(__name__)

TOP = 20
REFERENCE_TOLERANCE = 1e-3  # eV/atom, by which the reference relaxed anew may differ from the run's


@dataclass(frozen=True, eq=False)
class RerankResult:
    """What a rerank found.

    Attributes
    ----------
    rows : list of Reranked
        Candidates in the order of the run's ranking.
    reference : Reranked
        The crystal against which energies are given.
    record, record_run : CalculatorRecord, str
        The second calculator; the name of the run's.
    single_point : bool
        Whether the second calculator relaxed nothing.
    database, labels : Path
        Files of the results.
    """

    rows: list[Reranked]
    reference: Reranked
    record: CalculatorRecord
    record_run: str
    single_point: bool
    database: Path
    labels: Path


@dataclass(frozen=True, eq=False)
class _Run:
    """A finished run and what of it is to be judged again."""

    folder: RunFolder
    config: GenerateConfig
    calculator: dict[str, Any]
    summary: dict[str, Any]
    candidates: list[Candidate]
    known: list[Atoms]

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols in the candidates, sorted."""
        return tuple(sorted({symbol for candidate in self.candidates for symbol in candidate.atoms.symbols}))


def rerank(
    run: str | Path,
    calculator: str,
    *,
    top: int | None = None,
    single_point: bool = False,
    config: str | Path | None = None,
    potential: str = "silicon",
    workers: int = 1,
    time_limit: float = 0.0,
    retry: bool = False,
    overwrite: bool = False,
) -> RerankResult:
    """Judge the best candidates of a run, and its reference crystal, by a second calculator.

    Each result is on the disk before the next one is taken up. The same call goes on where the last one stopped, also
    with a larger `top`.

    Parameters
    ----------
    run : str or Path
        Folder of a finished run.
    calculator : str
        One name, as for `get_calculator`.
    top : int, optional
        How many of the ranked candidates; by default `TOP`, or all if there are fewer.
    single_point : bool
        Compute the minima of the run's calculator as they are, instead of relaxing from them too.
    config : str or Path, optional
        TOML file with the table of the calculator and a table ``relax``; what it leaves out is as in the run.
    potential : str
        MAISE model, if the calculator is MAISE.
    workers : int
        Processes; 0: one per core.
    time_limit : float
        Seconds that a candidate may take, 0 for no limit.
    retry, overwrite : bool
        Try failed candidates again; begin anew.

    Raises
    ------
    ConfigError, RunFolderError, StructureError, CalculatorSetupError
        If the request cannot be met.
    RelaxationError
        If the reference crystal fails by either calculator, without which no energy means anything.
    """
    if not 0 <= time_limit < float("inf"):
        raise ConfigError(f"time_limit = {time_limit} must be finite and not negative, in s; 0 for no limit")
    opened = _open_run(Path(run), top)
    options = _options(opened.config, calculator, potential, config)
    make = functools.partial(
        Evaluator.open,
        calculator,
        opened.species,
        potential,
        options.calculator_settings,
        opened.folder.calculator_runs,
        options.relax,
        single_point,
    )
    evaluator, record = make()
    stem = file_stem(calculator, potential)
    database_file, labels = opened.folder.path / f"rerank_{stem}.db", opened.folder.path / f"labels_{stem}.extxyz"
    if overwrite:
        for file in files_of(database_file):
            file.unlink(missing_ok=True)
        labels.unlink(missing_ok=True)
    database = RerankDatabase(database_file, _settings(opened, options, record, single_point=single_point))
    alone = workers == 1 and not time_limit
    executor: Executor = (
        LocalExecutor(evaluator)
        if alone
        else open_executor(
            "processes", functools.partial(open_evaluator, make), count_workers(workers), time_limit=time_limit
        )
    )
    with opened.folder.locked(), executor:
        session = _Session(opened, options.relax.pressure * units.GPa, database, executor, record, labels)
        reference = session.reference()
        rows = session.candidates(reference, retry=retry)
    return RerankResult(rows, reference, record, opened.calculator["name"], single_point, database_file, labels)


@dataclass(frozen=True, eq=False)
class _Session:
    """A rerank under way."""

    run: _Run
    pressure: float  # eV/Å³
    database: RerankDatabase
    executor: Executor
    record: CalculatorRecord
    labels: Path

    def reference(self) -> Reranked:
        """Relax the reference crystal by both calculators, unless that has been done."""
        done = self.database.read().get(None)
        if done is not None:
            return done
        start = _reference_start(self.run)
        number = _spacegroup(start, self.run.config)
        row = Reranked(None, start.info["name"], start, 0.0, spacegroup_run=number)
        _, opinion = next(iter(self._opinions([row])))
        row = self._judged(row, opinion, None)
        if row.failure is not None:
            raise RelaxationError(f"reference crystal {row.name} failed by {self.record.name}: {row.failure}")
        self.database.write(row)
        return row

    def candidates(self, reference: Reranked, *, retry: bool) -> list[Reranked]:
        """Judge those that are not judged yet; rows in the order of the run's ranking."""
        wanted = [_to_row(candidate) for candidate in self.run.candidates]
        rows = self.database.read()
        for row in wanted:
            _check_start(row, rows.get(row.candidate), self.database.path)
        waiting = [row for row in wanted if row.candidate not in rows or (retry and rows[row.candidate].failure)]
        write_labels(list(rows.values()), self.record, self.labels)  # a kill may have come between the two files
        with track("rerank", len(waiting)) as advance:
            for row, opinion in self._opinions(waiting):
                judged = self._judged(row, opinion, reference)
                if judged.failure is not None:
                    logger.info("candidate %d failed by %s: %s", judged.candidate, self.record.name, judged.failure)
                self.database.write(judged)
                rows[judged.candidate] = judged
                write_labels(list(rows.values()), self.record, self.labels)
                advance(1)
        return [rows[row.candidate] for row in wanted]

    def _opinions(self, rows: Sequence[Reranked]) -> Iterable[tuple[Reranked, Opinion]]:
        for row, result in self.executor.map("evaluate_row", rows):
            yield row, Opinion(failure=result.reason) if isinstance(result, Lost) else result

    def _judged(self, row: Reranked, opinion: Opinion, reference: Reranked | None) -> Reranked:
        """The row with what the second calculator said; energies relative to the reference, None for itself."""
        row = replace(
            row,
            single_point=opinion.single_point,
            relaxed=opinion.relaxed,
            n_steps=opinion.n_steps,
            failure=opinion.failure,
        )
        reference = reference or row
        if row.single_point is not None and reference.single_point is not None:
            above = self._above(row.single_point, reference.single_point)
            row = replace(row, energy_above_single_point=above)
        if row.failure is not None:
            return row
        if row.relaxed is None:
            return replace(row, energy_above=row.energy_above_single_point)
        assert reference.relaxed is not None
        return replace(
            row,
            energy_above=self._above(row.relaxed, reference.relaxed),
            volume_change=row.relaxed.cell.volume / row.start.cell.volume - 1.0,
            spacegroup=_spacegroup(row.relaxed, self.run.config),
            became=self._became(row),
        )

    def _above(self, atoms: Atoms, reference: Atoms) -> float:
        """Enthalpy above the reference; eV/atom."""
        return _enthalpy(atoms, self.pressure) - _enthalpy(reference, self.pressure)

    def _became(self, row: Reranked) -> str:
        """Which crystal the relaxed one is."""
        assert row.relaxed is not None
        if compare.same_crystal(row.relaxed, row.start):
            return "same"
        others = [candidate for candidate in self.run.candidates if candidate.index != row.candidate]
        crystals = [candidate.atoms for candidate in others] + self.run.known
        names = [f"candidate {candidate.index}" for candidate in others]
        names += [atoms.info["name"] for atoms in self.run.known]
        match = compare.match_known(row.relaxed, crystals)
        return "new" if match is None else names[match]


def _open_run(path: Path, top: int | None) -> _Run:
    """Read a finished run; refuse one that has no ranked candidates, or fewer than asked for."""
    if not (path / "config.toml").is_file():
        raise RunFolderError(f"{path} holds no run (no config.toml); give the folder that generate wrote")
    folder = RunFolder(path, resume=True)
    config = read_config(folder.config)
    with folder.opened_store(config.run.database) as store:
        database = CandidateDatabase(store)
        ranked = [entry.index for entry in rank(database.entries(status="ranked"))]
        chosen = list(database.iterate(ranked[: top or TOP]))
    file = path / "summary.json"
    if not ranked or not file.is_file():
        what = "no ranked candidates" if not ranked else "no summary.json"
        raise RunFolderError(f"{path} has {what}; finish it with generate --resume first")
    if top is not None and not 1 <= top <= len(ranked):
        raise ConfigError(f"top = {top}, but {path} has {len(ranked)} ranked candidates; give a number from 1 to that")
    calculator = folder.read_calculator()
    assert calculator is not None
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {file}: {error}; write it anew with generate --resume") from error
    return _Run(
        folder, config, calculator, summary, chosen, known_crystals(config.run.known, chosen[0].atoms.symbols[0])
    )


def _options(run: GenerateConfig, calculator: str, potential: str, file: str | Path | None) -> GenerateConfig:
    """Options of the run with the second calculator, its table, and the table ``relax`` of a file."""
    if "," in calculator:
        raise ConfigError(f"calculator = {calculator!r} must be a single one: energies of two are not compared")
    base = run.to_dict()
    base["run"] = {name: value for name, value in base["run"].items() if name != "potential"}
    base["run"] |= {"calculator": calculator, "potential": potential}
    for name in set(CALCULATOR_TABLES) - {calculator}:
        base.pop(name, None)
    tables = {} if file is None else read_tables(file)
    allowed = ["relax", *(name for name in CALCULATOR_TABLES if name == calculator)]
    for name, table in tables.items():
        if name not in allowed or not isinstance(table, dict):
            words = " and ".join(f"[{section}]" for section in allowed)
            raise ConfigError(f"{file}: {name} has no meaning for a rerank by {calculator}; leave all but {words} out")
    base |= {name: {**(base["relax"] if name == "relax" else {}), **table} for name, table in tables.items()}
    options = config_from_dict(base)
    if options.relax.pressure != run.relax.pressure:
        raise ConfigError(
            f"pressure = {options.relax.pressure} GPa, but the run has {run.relax.pressure} GPa; leave it out"
        )
    return options


def _settings(
    run: _Run, options: GenerateConfig, record: CalculatorRecord, *, single_point: bool
) -> dict[str, dict[str, Any]]:
    """What decides about the numbers, for the record and to be met by those who go on."""
    relax = {"pressure": options.relax.pressure} if single_point else asdict(options.relax)
    tables = {"calculator": asdict(record), "calculator of the run": dict(run.calculator)}
    for table in tables.values():
        table.pop("refused", None)
    return {"mode": {"single_point": single_point}, "relax": relax, **tables}


def _reference_start(run: _Run) -> Atoms:
    """The reference crystal as the run's calculator relaxes it, which must be as high as it was in the run."""
    name, energy = run.summary["reference"]["name"], run.summary["reference"]["energy_per_atom"]
    found = [atoms for atoms in run.known if atoms.info["name"] == name]
    if not found:
        raise ConfigError(f"reference crystal {name!r} of the run is no longer among its known crystals; restore them")
    calc, record = get_calculator(
        run.calculator["name"],
        species=run.species,
        model=run.config.run.potential,
        settings=run.config.calculator_settings,
        directory=run.folder.calculator_runs,
    )
    opinion = Evaluator(calc, run.config.relax, single_point=False).evaluate(found[0])
    if opinion.relaxed is None:
        raise RelaxationError(f"reference crystal {name} failed by {record.name}: {opinion.failure}")
    atoms = opinion.relaxed
    now = _enthalpy(atoms, run.config.relax.pressure * units.GPa)
    if abs(now - energy) > REFERENCE_TOLERANCE:
        raise ConfigError(
            f"reference crystal {name} has {now:.4f} eV/atom by {record.name}, in the run it had {energy:.4f} (limit "
            f"{REFERENCE_TOLERANCE} eV/atom): the calculator or the crystal has changed; bring back those of the run"
        )
    atoms.info["name"] = name
    return atoms


def _enthalpy(atoms: Atoms, pressure: float) -> float:
    """Per atom, at a pressure in eV/Å³; eV."""
    return (atoms.get_potential_energy() + pressure * atoms.cell.volume) / len(atoms)


def _to_row(candidate: Candidate) -> Reranked:
    """Row of a candidate before it is judged."""
    start = candidate.atoms.copy()
    start.calc = SinglePointCalculator(start, energy=candidate.energy, forces=candidate.forces, stress=candidate.stress)
    assert candidate.energy_above is not None
    name = f"candidate {candidate.index}"
    return Reranked(candidate.index, name, start, candidate.energy_above, spacegroup_run=candidate.spacegroup)


def _check_start(row: Reranked, before: Reranked | None, path: Path) -> None:
    """Refuse to go on if the run has another crystal under the number of a judged one."""
    if before is None:
        return
    same = len(row.start) == len(before.start) and np.allclose(row.start.positions, before.start.positions, atol=1e-6)
    if not (same and np.allclose(row.start.cell.array, before.start.cell.array, atol=1e-6)):
        raise ConfigError(f"{path} is of another run: its {row.name} is another crystal; add --overwrite to begin anew")


def _spacegroup(atoms: Atoms, config: GenerateConfig) -> int | None:
    """International number; None if no space group was found, which is logged."""
    try:
        return symmetry.symmetrize(atoms, symprec=config.symmetry.symprec).number
    except SymmetryError as error:
        logger.warning("no space group of %s: %s", atoms.symbols, error)
        return None
