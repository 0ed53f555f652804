"""What a run did, in numbers: ``summary.json``."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from ase import Atoms

import ase_hvae
from ase_hvae.calculators import outside_training
from ase_hvae.candidate import Candidate
from ase_hvae.compare import null_correlation
from ase_hvae.funnel import Funnel, Reference

PACKAGES = ("ase", "numpy", "scipy", "torch", "spglib", "phonopy", "symfc", "pymatgen", "pyxtal", "vesin")


def summarize(
    funnel: Funnel,
    candidates: Iterable[Candidate],
    counts: Mapping[str, int],
    reference: Reference,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Funnel counts with the reasons of losses, seconds per stage, seed, hashes and versions; ready for JSON.

    ``pearson_null`` is null with a single known crystal, ``outside_training`` with a calculator that does not say.
    """
    source = funnel.source
    return {
        "seed": source.config.run.seed,
        "database": source.config.run.database or "candidates.db",
        "funnel": {"reconstruct": dict(counts), **count(candidates)},
        "reference": asdict(reference),
        "pearson_null": null_correlation(funnel.known_rdfs) if len(source.known) > 1 else None,
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "calculator": asdict(funnel.record),
        "model": {"path": source.config.run.model or "shipped", "sha256": source.model.card["sha256"]},
        "known": {"crystals": len(source.known), "sha256": hash_structures(source.known)},
        "versions": {
            "ase_hvae": ase_hvae.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def count(candidates: Iterable[Candidate]) -> dict[str, Any]:
    """How many candidates and children each stage kept, and why the others were lost."""
    counts: Counter[str] = Counter()
    children: Counter[str] = Counter()
    failures: dict[str, Counter[str]] = {}
    phonons: Counter[str] = Counter()
    elasticity: Counter[str] = Counter()
    for candidate in candidates:
        counts.update(_traits(candidate))
        if candidate.depth > 0:
            children.update(_traits(candidate))
        if candidate.failure:
            failures.setdefault(candidate.stage, Counter())[candidate.failure] += 1
        if candidate.status == "ranked":
            phonons[candidate.verdict.split(" (")[0]] += 1
            if candidate.has_elasticity:
                elasticity[_elastic_verdict(candidate)] += 1
    return {
        "candidates": counts["all"] - children["all"],
        "children": {
            "made": children["all"],
            "refused": counts["child refused"],
            "failed": children["failed"],
            "duplicates": children["duplicate"],
            "ranked": children["ranked"],
            "new": children["new"],
        },
        "relaxed": counts["relaxed"],
        "failed": counts["failed"],
        "failures": failures,
        "duplicates": counts["duplicate"],
        "ranked": counts["ranked"],
        "new": counts["new"],
        "outside_training": counts["outside training"] if counts["extrapolation"] else None,
        "within_0.3_eV_per_atom": counts["near"],
        "phonons": phonons,
        "elasticity": elasticity,
    }


def _traits(candidate: Candidate) -> Iterator[str]:
    """What a candidate counts as."""
    yield "all"
    yield candidate.status
    if candidate.energy is not None:
        yield "relaxed"
    if candidate.child_failure is not None:
        yield "child refused"
    if candidate.status == "ranked":
        if candidate.known == "new":
            yield "new"
        if candidate.is_within(0.3):
            yield "near"
        if candidate.extrapolation is not None:  # the potential says how far it is from its training data
            yield "extrapolation"
            if outside_training(candidate.extrapolation):
                yield "outside training"


def _elastic_verdict(candidate: Candidate) -> str:
    if candidate.elastic_failure is not None:
        return "failed"
    return "stable" if candidate.mechanically_stable else "unstable"


def hash_structures(structures: Sequence[Atoms]) -> str:
    """SHA-256 of numbers, cells and positions, rounded to 1e-8 Å."""
    digest = hashlib.sha256()
    for atoms in structures:
        for array in (atoms.numbers.astype("<i8"), atoms.cell.array.round(8) + 0.0, atoms.positions.round(8) + 0.0):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
