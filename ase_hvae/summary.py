"""What a run did, in numbers: ``summary.json``."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
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
    candidates: Sequence[Candidate],
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


def count(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """How many candidates and children each stage kept, and why the others were lost."""
    statuses = Counter(candidate.status for candidate in candidates)
    ranked = [candidate for candidate in candidates if candidate.status == "ranked"]
    failures: dict[str, Counter[str]] = {}
    for candidate in candidates:
        if candidate.failure:
            failures.setdefault(candidate.stage, Counter())[candidate.failure] += 1
    children = [candidate for candidate in candidates if candidate.depth > 0]
    return {
        "candidates": len(candidates) - len(children),
        "children": _count_children(candidates, children),
        "relaxed": sum(candidate.energy is not None for candidate in candidates),
        "failed": statuses["failed"],
        "failures": failures,
        "duplicates": statuses["duplicate"],
        "ranked": len(ranked),
        "new": sum(candidate.known == "new" for candidate in ranked),
        "outside_training": _count_outside(ranked),
        "within_0.3_eV_per_atom": sum(candidate.is_within(0.3) for candidate in ranked),
        "phonons": Counter(candidate.verdict.split(" (")[0] for candidate in ranked),
        "elasticity": Counter(_elastic_verdict(candidate) for candidate in ranked if candidate.has_elasticity),
    }


def _count_children(candidates: Sequence[Candidate], children: Sequence[Candidate]) -> dict[str, int]:
    """How many soft modes gave a child, how many gave none, and what became of the children."""
    statuses = Counter(child.status for child in children)
    return {
        "made": len(children),
        "refused": sum(candidate.child_failure is not None for candidate in candidates),
        "failed": statuses["failed"],
        "duplicates": statuses["duplicate"],
        "ranked": statuses["ranked"],
        "new": sum(child.status == "ranked" and child.known == "new" for child in children),
    }


def _elastic_verdict(candidate: Candidate) -> str:
    if candidate.elastic_failure is not None:
        return "failed"
    return "stable" if candidate.mechanically_stable else "unstable"


def _count_outside(ranked: Sequence[Candidate]) -> int | None:
    """How many ranked candidates lie outside the potential's training range; None if it does not say."""
    known = [candidate.extrapolation for candidate in ranked if candidate.extrapolation is not None]
    return sum(outside_training(value) for value in known) if known else None


def hash_structures(structures: Sequence[Atoms]) -> str:
    """SHA-256 of numbers, cells and positions, rounded to 1e-8 Å."""
    digest = hashlib.sha256()
    for atoms in structures:
        for array in (atoms.numbers.astype("<i8"), atoms.cell.array.round(8) + 0.0, atoms.positions.round(8) + 0.0):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
