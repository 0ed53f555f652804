"""Children of soft modes, elastic tensors and harmonic energies as stages of a run."""

import json

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import write

from ase_hvae import generate, pipeline, train
from ase_hvae.candidate import Candidate
from ase_hvae.config import GenerateConfig
from ase_hvae.database import CandidateDatabase
from ase_hvae.funnel import Funnel
from ase_hvae.report import describe
from ase_hvae.structures import check_structure

OPTIONS = {
    "seed": 2, "n": 6, "natoms": "1-4", "n_phonons": 4, "phonon_window": 1000.0, "min_length": 6.0, "n_elastic": 1,
    "child_atoms": 8, "temperature": 300.0, "children_depth": 2, "n_proposals": 300, "pearson_threshold": 0.4,
}  # fmt: skip


def rows(folder):
    """All of a run that must not depend on workers and interruptions."""
    names = (
        "status", "parent", "depth", "spacegroup", "energy_above", "duplicate_of", "min_frequency", "stable",
        "harmonic_free_energy", "mechanically_stable", "bulk_modulus",
    )  # fmt: skip
    return {
        row.candidate: [round(value, 5) if isinstance(value := row.get(name), float) else value for name in names]
        for row in connect(folder / "candidates.db").select()
    }


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("children") / "run"
    return folder, generate(out=folder, workers=1, **OPTIONS)


def test_children_descend_from_unstable_crystals(finished_run):
    folder, _ = finished_run
    candidates = {candidate.index: candidate for candidate in CandidateDatabase(folder / "candidates.db").read()}
    children = [candidate for candidate in candidates.values() if candidate.depth > 0]
    assert children
    stride = 4 * OPTIONS["n"] * 3  # latents and candidates of each
    for child in children:
        parent = candidates[child.parent]
        assert child.index == parent.index + stride
        assert child.depth == parent.depth + 1
        assert parent.stable is False
        np.testing.assert_array_equal(child.target_rdf, parent.target_rdf)
        if child.energy is not None:
            check_structure(child.atoms)
            assert child.energy / len(child.atoms) < parent.energy / len(parent.atoms)
    unstable = [c for c in candidates.values() if c.stable is False and c.depth < OPTIONS["children_depth"]]
    assert {c.index for c in unstable} == {c.parent for c in children} | {
        c.index for c in candidates.values() if c.child_failure is not None
    }
    for depth in range(OPTIONS["children_depth"] + 1):
        ranked = [c for c in candidates.values() if c.status == "ranked" and c.depth == depth and c.energy_above <= 1.0]
        lowest = sorted(ranked, key=lambda c: c.energy_above)[: OPTIONS["n_phonons"]]
        assert all(c.has_phonons for c in lowest)
    for candidate in candidates.values():
        assert candidate.status in ("ranked", "duplicate", "failed")
        if candidate.status == "duplicate":
            kept = candidates[candidate.duplicate_of]
            assert kept.status == "ranked"
            assert kept.energy / len(kept.atoms) <= candidate.energy / len(candidate.atoms)
        else:
            assert candidate.duplicate_of is None


def test_summary_and_table_show_the_stages(finished_run):
    folder, ranked = finished_run
    funnel = json.loads((folder / "summary.json").read_text())["funnel"]
    stored = CandidateDatabase(folder / "candidates.db").read()
    children = funnel["children"]
    assert funnel["candidates"] == sum(candidate.depth == 0 for candidate in stored) == OPTIONS["n"]
    assert children["made"] == len(stored) - OPTIONS["n"]
    assert children["made"] == children["failed"] + children["duplicates"] + children["ranked"]
    assert sum(funnel["elasticity"].values()) == OPTIONS["n_elastic"]
    table = describe(folder, ranked)
    assert "B GPa" in table
    assert "F meV/atom" in table
    assert f"{OPTIONS['n']} candidates and {children['made']} children" in table


def test_moduli_and_harmonic_energies_obey_their_laws(finished_run):
    _, ranked = finished_run
    measured = [candidate for candidate in ranked if candidate.mechanically_stable]
    assert measured
    for candidate in measured:
        assert candidate.stable
        assert np.linalg.eigvalsh(candidate.elastic_tensor).min() > 0
        voigt = candidate.elastic_tensor[:3, :3].sum() / 9
        reuss = 1 / np.linalg.inv(candidate.elastic_tensor)[:3, :3].sum()
        assert candidate.bulk_modulus == pytest.approx((voigt + reuss) / 2)  # Hill
        assert 20 < candidate.bulk_modulus / units.GPa < 200
    for candidate in ranked:
        assert (candidate.zero_point_energy is not None) == bool(candidate.stable)
        if candidate.stable:
            assert candidate.zero_point_energy > candidate.harmonic_free_energy  # entropy lowers it


def test_workers_change_nothing(finished_run, tmp_path):
    generate(out=tmp_path / "run", workers=2, **OPTIONS)
    assert rows(tmp_path / "run") == rows(finished_run[0])


@pytest.mark.parametrize("n_writes", [2, 7])
def test_run_stopped_after_reconstruction_goes_on_to_the_same_result(finished_run, tmp_path, monkeypatch, n_writes):
    """Writes are counted from the first child or finished phonons on."""
    written = 0

    class Stopped(Exception):
        pass

    class Stopping(CandidateDatabase):
        def write(self, *candidates):
            nonlocal written
            written += bool(written) or any(candidate.depth > 0 or candidate.has_phonons for candidate in candidates)
            if written > n_writes:
                raise Stopped
            super().write(*candidates)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "CandidateDatabase", Stopping)
        with pytest.raises(Stopped):
            generate(out=tmp_path / "run", workers=1, **OPTIONS)
    generate(out=tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(finished_run[0])


def test_nothing_is_new_to_the_database_of_the_same_run(finished_run, tmp_path):
    folder, ranked = finished_run
    assert any(candidate.known == "new" for candidate in ranked)
    again = generate(out=tmp_path / "run", workers=1, also_known=str(folder / "candidates.db"), **OPTIONS)
    assert [candidate.index for candidate in again] == [candidate.index for candidate in ranked]
    assert not any(candidate.known == "new" for candidate in again)


def test_finished_run_resumed_stays_the_same(finished_run):
    folder, _ = finished_run
    before = rows(folder)
    generate(out=folder, resume=True)
    assert rows(folder) == before


@pytest.fixture(scope="module")
def copper(tmp_path_factory):
    """Files of weights and known crystals of copper."""
    folder = tmp_path_factory.mktemp("copper")
    crystals = [bulk("Cu", "fcc", 3.6), bulk("Cu", "bcc", 2.9), bulk("Cu", "sc", 2.4), bulk("Cu", "hcp", 2.55, 4.2)]
    crystals.append(bulk("Cu", "bct", a=2.6, c=3.6))
    for atoms, name in zip(crystals, ["fcc", "bcc", "sc", "hcp", "bct"], strict=True):
        atoms.info["name"] = name
    write(folder / "copper.extxyz", crystals)
    train(folder / "copper.extxyz", folder / "copper.safetensors", epochs=3, seed=1)
    return {"model": str(folder / "copper.safetensors"), "known": str(folder / "copper.extxyz"), "min_length": 7.0}


def relaxed_simple_cubic(copper, **options):
    """Stages for copper by EMT, and its simple cubic crystal, which is unstable."""
    funnel = Funnel.open(GenerateConfig().with_options(**copper, **options), EMT())
    start = Candidate(
        index=5, replica=1, atoms=bulk("Cu", "sc", 2.4), latent=np.zeros(2), target_rdf=np.arange(200.0),
        pearson_initial=0.0, spacegroup_initial=221, symbol_initial="Pm-3m", stage="symmetrize",
    )  # fmt: skip
    return funnel, funnel.relax([start])[0]


def test_child_of_simple_cubic_copper_is_lower_and_depends_on_the_seed_only(copper):
    funnel, parent = relaxed_simple_cubic(copper, seed=4)
    child, checked = funnel.phonons([parent])
    again, _ = relaxed_simple_cubic(copper, seed=4)[0].phonons([parent])
    other, _ = relaxed_simple_cubic(copper, seed=5)[0].phonons([parent])
    np.testing.assert_array_equal(child.atoms.positions, again.atoms.positions)
    assert np.abs(child.atoms.positions - other.atoms.positions).max() > 1e-4
    assert (child.parent, child.depth, child.index) == (5, 1, 5 + 4 * 100 * 3)
    assert (child.symbol_initial, child.spacegroup_initial, child.stage) == ("Pm-3m", 221, "symmetrize")
    assert checked.stable is False
    assert checked.child_failure is None
    lower = funnel.relax([child])[0]
    assert lower.energy / len(lower.atoms) < parent.energy / len(parent.atoms) - 0.01
    grandchildren = funnel.phonons([lower])
    assert [candidate.depth for candidate in grandchildren] == [1]  # children_depth is 1


def test_phonons_alone_make_no_child(copper):
    funnel, simple_cubic = relaxed_simple_cubic(copper)
    _, parent = funnel.phonons([simple_cubic])
    (alone,) = funnel.phonons_alone([simple_cubic])
    assert alone.stable is False
    np.testing.assert_array_equal(alone.frequencies, parent.frequencies)


def test_refused_mode_is_recorded(copper):
    """Its softest mode alternates from cell to cell, so that it does not repeat in one atom."""
    funnel, parent = relaxed_simple_cubic(copper, child_atoms=1)
    (checked,) = funnel.phonons([parent])
    assert checked.stable is False
    assert "repeats in 1 atoms" in checked.child_failure
    assert "raise max_atoms" in checked.child_failure
    assert checked.status == "pending"


def test_failed_elasticity_leaves_the_candidate(copper):
    funnel, parent = relaxed_simple_cubic(copper)
    moved = bulk("Cu", "sc", 2.4) * (2, 1, 1)
    moved.positions[0, 0] += 0.2
    (checked,) = funnel.elasticity([parent.evolve(atoms=moved)])
    assert "not relaxed" in checked.elastic_failure
    assert checked.mechanically_stable is None
    assert checked.status == "pending"


def test_lower_child_makes_a_duplicate_of_a_kept_crystal_and_back(copper, tmp_path):
    funnel, simple_cubic = relaxed_simple_cubic(copper)
    reference = funnel.reference()
    (kept,) = funnel.compare([simple_cubic], reference)
    assert kept.status == "pending"
    child = simple_cubic.evolve(index=1205, parent=5, depth=1, energy=simple_cubic.energy - 1e-4)
    both = {candidate.index: candidate for candidate in funnel.compare([child, kept], reference)}
    assert (both[5].status, both[5].duplicate_of) == ("duplicate", 1205)
    assert both[1205].status == "pending"
    database = CandidateDatabase(tmp_path / "candidates.db")
    database.write(both[5])
    database.write(*funnel.compare([both[5]], reference))
    assert [(row.status, row.duplicate_of) for row in database.read()] == [("pending", None)]
