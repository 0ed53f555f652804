"""A labelling run: what is left to do, and the labels as they come."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError, all_properties
from ase.calculators.singlepoint import SinglePointCalculator

from maise_bridge.labelling.files import FailureFile, KnownStructures, LabelFile, open_label_file, structure_id
from maise_bridge.labelling.processes import Answer, Limits, WorkerPool
from maise_bridge.labelling.settings import LabelSettings
from maise_bridge.labelling.worker import decode

_OWN = frozenset({"structure", "settings", "program", "versions", "cpu", "kspacing", "note"})


@dataclass(frozen=True, eq=False)
class Job:
    """A structure to label: its name for messages, its identity, and itself."""

    name: str
    identity: str
    atoms: Atoms


@dataclass(frozen=True, eq=False)
class Outcome:
    """How the labelling of a structure ended.

    Attributes
    ----------
    job : Job
    atoms : Atoms or None
        With energy (eV), forces (eV/Å) and stress (eV/Å³); None after a failure.
    failure : str or None
        The cause.
    cpu : float
        CPU seconds; NaN if not known.
    """

    job: Job
    atoms: Atoms | None
    failure: str | None
    cpu: float


@dataclass(frozen=True, eq=False)
class LabelRun:
    """What a run has to do; made by :func:`open_run`.

    Attributes
    ----------
    jobs : tuple of Job
        Structures to label, in the order of the input.
    n_labelled, n_known, n_repeated : int
        Structures left out: in the label file already, in the known files, twice in the input.
    failed : tuple of str
        Names of structures left out because they failed before.
    """

    jobs: tuple[Job, ...]
    n_labelled: int
    n_known: int
    n_repeated: int
    failed: tuple[str, ...]
    _settings: LabelSettings
    _labels: LabelFile
    _failures: FailureFile

    def outcomes(
        self, *, n_workers: int = 1, limits: Limits | None = None, python: str | None = None
    ) -> Iterator[Outcome]:
        """Label the structures; each is on the disk before it is yielded.

        Parameters
        ----------
        n_workers : int
            Processes, each on one thread.
        limits : Limits, optional
            What one structure may take; a worker beyond it is killed, and the structure has failed.
        python : str, optional
            Interpreter of the workers, if the program is installed in another one.

        Raises
        ------
        CalculatorSetupError
            If the program cannot be started, or is not the one of the labels that the file holds.
        OSError
            If the disk refuses.
        """
        if not self.jobs:
            return
        species = sorted({symbol for job in self.jobs for symbol in job.atoms.symbols})
        scratch = self._labels.path.with_name(f"{self._labels.path.name}.scratch").absolute()
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        scratch.mkdir()
        try:
            count = min(n_workers, len(self.jobs))
            with WorkerPool(self._settings, species, scratch, n_workers=count, limits=limits, python=python) as pool:
                self._check_program(pool.identity)
                for answer in pool.map([job.atoms for job in self.jobs]):
                    yield self._keep(answer, pool)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _keep(self, answer: Answer, pool: WorkerPool) -> Outcome:
        job = self.jobs[answer.job]
        if answer.results is None:
            entry = {"structure": job.identity, "name": job.name, "cause": answer.failure, "cpu": _rounded(answer.cpu)}
            self._failures.append({**entry, "settings": _digest(self._settings)})
            return Outcome(job, None, answer.failure, answer.cpu)
        atoms = _labelled(job, answer.results, self._settings)
        atoms.info |= {"program": pool.identity, "versions": pool.versions, "cpu": _rounded(answer.cpu)}
        self._labels.append(atoms)
        return Outcome(job, atoms, None, answer.cpu)

    def _check_program(self, identity: Mapping[str, str]) -> None:
        for number, atoms in enumerate(self._labels.frames):
            before = atoms.info.get("program", {})
            for name in before.keys() & identity.keys():
                if before[name] != identity[name]:
                    raise CalculatorSetupError(
                        f"{self._labels.path}, structure {number}: was labelled with {name} {before[name]}, now it is "
                        f"{identity[name]}; labels are not mixed, name another file"
                    )


@contextmanager
def open_run(
    structures: Sequence[tuple[str, Atoms]],
    settings: LabelSettings,
    out: Path,
    *,
    known: Sequence[Atoms] = (),
    retry: bool = False,
) -> Iterator[LabelRun]:
    """Open a label file, new or begun before, and find what is left to label.

    Failures are kept beside it, in ``OUT.failures.jsonl``.

    Parameters
    ----------
    structures : sequence of (str, Atoms)
        Crystals with names for messages.
    settings : LabelSettings
    out : Path
        Extended XYZ; one process at a time may open it.
    known : sequence of Atoms
        Structures that need no label.
    retry : bool
        Try again what failed before.

    Raises
    ------
    ValueError
        If a structure is no crystal, the file is damaged or in use, or holds labels of other settings.
    """
    for name, atoms in structures:
        _check_crystal(name, atoms)
    failures = FailureFile(out.with_name(f"{out.name}.failures.jsonl"))
    with open_label_file(out, partial(_check_settings, settings)) as labels:
        yield _plan(structures, settings, labels, failures, KnownStructures(known), retry)


def _plan(
    structures: Sequence[tuple[str, Atoms]],
    settings: LabelSettings,
    labels: LabelFile,
    failures: FailureFile,
    known: KnownStructures,
    retry: bool,
) -> LabelRun:
    labelled = {str(atoms.info["structure"]) for atoms in labels.frames}
    broken = {entry["structure"] for entry in failures.entries if entry["settings"] == _digest(settings)}
    jobs: dict[str, Job] = {}
    failed: list[str] = []
    seen: set[str] = set()
    counts = {"n_labelled": 0, "n_known": 0, "n_repeated": 0}
    for name, atoms in structures:
        identity = structure_id(atoms)
        if identity in seen:
            counts["n_repeated"] += 1
        elif identity in labelled:
            counts["n_labelled"] += 1
        elif atoms in known:
            counts["n_known"] += 1
        elif identity in broken and not retry:
            failed.append(name)
        else:
            jobs[identity] = Job(name, identity, atoms)
        seen.add(identity)
    return LabelRun(
        tuple(jobs.values()), **counts, failed=tuple(failed), _settings=settings, _labels=labels, _failures=failures
    )


def _check_crystal(name: str, atoms: Atoms) -> None:
    if len(atoms) == 0:
        raise ValueError(f"{name}: has no atoms; leave it out")
    for quantity, array in (("positions", atoms.positions), ("cell", atoms.cell.array)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: {quantity} not finite; leave it out")
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise ValueError(f"{name}: is no crystal (pbc {atoms.pbc.tolist()}, cell rank {atoms.cell.rank}); leave it out")


def _check_settings(settings: LabelSettings, source: str, atoms: Atoms) -> None:
    found, wanted = atoms.info.get("settings"), settings.record
    if not isinstance(found, dict) or "structure" not in atoms.info:
        raise ValueError(f"{source}: was not written by label; pass the file as --known, and name another --out")
    differing = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{source}: was labelled with {name} = {found.get(name)}, now it is {wanted.get(name)}; labels of two "
            "settings are not mixed, name another --out"
        )


def _labelled(job: Job, results: Mapping[str, Any], settings: LabelSettings) -> Atoms:
    """What was computed, with results, the simple entries of the structure's `info`, and where the label is from."""
    atoms = decode(results["atoms"])
    atoms.info |= {key: value for key, value in map(_simple, job.atoms.info.items()) if key and value is not None}
    atoms.info |= {"structure": job.identity, "settings": settings.record}
    kspacing = settings.for_structure(len(atoms)).get("kspacing")
    if isinstance(kspacing, int | float):
        atoms.info["kspacing"] = float(kspacing)
    if results["note"]:
        atoms.info["note"] = results["note"]
    values = {name: np.array(results[name]) for name in ("forces", "stress")}
    energies = {name: results[name] for name in ("energy", "free_energy") if np.isfinite(results[name])}
    atoms.calc = SinglePointCalculator(atoms, **energies, **values)
    return atoms


def _simple(item: tuple[Any, Any]) -> tuple[str, Any]:
    """An entry of `info` that extended XYZ holds safely, or an empty key."""
    key, value = item
    if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", key) or key in _OWN or key in all_properties:
        return "", None
    if isinstance(value, np.generic):
        value = value.item()
    return key, " ".join(value.split()) if isinstance(value, str) else value if isinstance(value, int | float) else None


def _rounded(seconds: float) -> float | None:
    return round(seconds, 2) if np.isfinite(seconds) else None


def _digest(settings: LabelSettings) -> str:
    return hashlib.sha256(json.dumps(settings.record, sort_keys=True).encode()).hexdigest()[:16]
