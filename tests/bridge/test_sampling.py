"""Pools of structures to label: what each family does to its parents, no copies, no overlaps, the same for a seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read, write

from maise_bridge import MaisePotential, read_model, write_model
from maise_bridge.cli import main
from maise_bridge.families import find_families
from maise_bridge.fingerprints import Fingerprints
from maise_bridge.labelling import structure_id
from maise_bridge.sampling import sample_pool, shortest_distances, too_close
from maise_bridge.sampling_active import Opinion, ask_committee, farthest_points, mean_descriptors, select_structures
from maise_bridge.sampling_families import FAMILIES, Parent, supercell

DATA = Path(__file__).parents[1] / "data" / "bridge"


def known():
    """Crystals of one and of two elements."""
    diamond = bulk("Si", a=5.47)
    diamond.info["name"] = "cubic diamond"
    return [diamond, bulk("Si", "bcc", a=3.1), bulk("MgO", "rocksalt", a=4.2)]


def parents_of(pool):
    return {atoms.info["parent"] for atoms in pool.structures}


@pytest.fixture(scope="module")
def pool():
    return sample_pool(known(), n=60, seed=1)


def test_a_pool_has_what_was_asked_for(pool):
    assert dict(pool.found) == dict(pool.wanted)
    assert len(pool.structures) == sum(pool.wanted.values()) == 60
    assert set(pool.wanted) == set(FAMILIES)
    assert all(1 <= len(atoms) <= 16 and atoms.pbc.all() and atoms.get_volume() > 0 for atoms in pool.structures)
    tags = {atoms.info["config_type"].partition("_")[0] for atoms in pool.structures}
    assert tags == {"ev", "rattle", "phonon", "elastic", "vacancy", "random"}
    assert "cubic-diamond" in parents_of(pool)
    whole = [atoms for atoms in pool.structures if not atoms.info["config_type"].startswith("vacancy")]
    assert {atoms.symbols.formula.reduce()[0].format("metal") for atoms in whole} == {"Si", "MgO"}
    random = [atoms for atoms in whole if atoms.info["config_type"].startswith("random")]
    assert {atoms.info["config_type"].split("_")[1] for atoms in random} == {"Si", "MgO"}


def test_a_pool_repeats_for_its_seed_whatever_the_order(pool):
    names = ("volume", "rattle", "vacancy", "random")
    first = sample_pool(known(), n=20, seed=3, families=names).structures
    second = sample_pool(known()[::-1], n=20, seed=3, families=names).structures
    assert [structure_id(atoms) for atoms in first] == [structure_id(atoms) for atoms in second]
    other = sample_pool(known(), n=20, seed=4, families=names).structures
    assert {structure_id(atoms) for atoms in first[-5:]}.isdisjoint(structure_id(atoms) for atoms in other)


def test_no_two_atoms_are_too_close_and_no_two_crystals_the_same(pool):
    limits = shortest_distances(known())
    assert limits[14, 14] == pytest.approx(5.47 * np.sqrt(3) / 4)
    assert limits[8, 12] == pytest.approx(2.1)
    seen = Fingerprints()
    for atoms in (*known(), *pool.structures):
        assert seen.add(atoms)
        assert not too_close(atoms, limits, 0.75)
        if set(atoms.symbols) == {"Si"}:
            distances = atoms.repeat(2).get_all_distances(mic=True)
            assert distances[distances > 0].min() > 0.75 * limits[14, 14]
    excluded = sample_pool(known()[:1], n=10, seed=1, families=["volume"], exclude=pool.structures)
    assert all(seen.add(atoms) for atoms in excluded.structures)


def test_a_crystal_is_recognized_in_any_cell_order_and_orientation():
    crystal = sample_pool(known()[2:], n=1, seed=1, families=["rattle"]).structures[0]
    seen = Fingerprints()
    assert seen.add(crystal)
    same = make_supercell(crystal, [[1, 1, 0], [0, 1, 0], [1, 0, 2]])
    same = same[np.random.default_rng(1).permutation(len(same))]
    same.rotate(40, (1, 2, 3), rotate_cell=True)
    same.positions += 0.3
    assert not seen.add(same)
    for change in ("stretch", "element", "move"):
        other = crystal.copy()
        if change == "stretch":
            other.set_cell(other.cell.array * 1.001, scale_atoms=True)
        elif change == "element":
            other.numbers[other.numbers == 8] = 16
        else:
            other.positions[0] += 0.01
        assert seen.add(other)


@pytest.mark.parametrize("number", range(4))
def test_families_keep_what_they_promise(number):
    atoms = bulk("Si", a=5.47)
    parent, rng = Parent("x", atoms), np.random.default_rng(number)

    def drawn(name):
        found = FAMILIES[name][0](parent, rng, 16, number)
        assert len(parent.atoms) == 2
        assert parent.atoms == bulk("Si", a=5.47)
        return found

    scan = drawn("volume")
    assert scan.get_volume() / atoms.get_volume() == pytest.approx(0.75 + 0.6 * (0.5, 0.25, 0.75, 0.125)[number])
    np.testing.assert_allclose(scan.get_scaled_positions(), atoms.get_scaled_positions(), atol=1e-12)
    strained = drawn("elastic")
    strain = np.linalg.solve(atoms.cell.array, strained.cell.array) - np.eye(3)
    np.testing.assert_allclose(strain, strain.T, atol=1e-12)
    assert 0.002 < np.abs(strain).max() <= 0.02
    np.testing.assert_allclose(strained.get_scaled_positions(), atoms.get_scaled_positions(), atol=1e-12)
    phonon = drawn("phonon")
    assert phonon.get_volume() / len(phonon) == pytest.approx(atoms.get_volume() / 2)
    whole = atoms.repeat(2)
    assert len(phonon) == 16 or number % 2
    if len(phonon) == 16:
        shifts = phonon.positions - whole.positions
        assert 0 < np.abs(shifts).max() < 0.06 * 5
    vacancy = drawn("vacancy")
    assert len(vacancy) == 15
    rattled = drawn("rattle")
    assert 0.85 <= rattled.get_volume() / len(rattled) / (atoms.get_volume() / 2) <= 1.2


def test_supercells_are_as_round_as_possible():
    assert supercell(bulk("Cu", cubic=True), 35).cell.lengths() == pytest.approx([7.22] * 3)
    flat = Atoms("Cu", cell=[2.0, 4.0, 8.0], pbc=True)
    assert supercell(flat, 8).cell.lengths() == pytest.approx([8.0, 8.0, 8.0])
    assert len(supercell(bulk("Cu"), 1)) == 1


def test_random_crystals_have_a_space_group_and_the_composition(pool):
    drawn = [atoms for atoms in pool.structures if atoms.info["config_type"].startswith("random_")]
    groups = {int(atoms.info["config_type"].rpartition("_")[2]) for atoms in drawn}
    assert len(drawn) == 15
    assert len(groups) > 5
    assert all(1 <= group <= 230 for group in groups)


def test_large_crystals_are_reduced_or_passed_over(caplog):
    cubic = bulk("Si", a=5.47, cubic=True).repeat((1, 1, 3))
    small = sample_pool([cubic], n=5, max_atoms=4, families=["volume"])
    assert {len(atoms) for atoms in small.structures} == {2}
    rattled = cubic.copy()
    rattled.rattle(0.1, seed=1)
    with pytest.raises(ValueError, match="none of 1 known crystals has at most 4 atoms"):
        sample_pool([rattled], n=5, max_atoms=4)
    assert "has 24 atoms in its primitive cell, more than 4; passed over" in caplog.text


def test_a_family_that_runs_dry_makes_the_pool_smaller():
    pool = sample_pool([bulk("Cu")], n=5, max_atoms=2, families=["vacancy", "volume"])
    assert pool.found["vacancy"] == 0 < pool.wanted["vacancy"]
    assert pool.found["volume"] == pool.wanted["volume"]


def test_descendants_of_a_crystal_are_one_family(pool):
    ours = [atoms for atoms in pool.structures if atoms.info["parent"] == "cubic-diamond"]
    tags = [atoms.info["config_type"] for atoms in ours if not atoms.info["config_type"].startswith("random")]
    assert len({tag.partition("_")[0] for tag in tags}) >= 4
    features = 100.0 * np.arange(len(tags))[:, None]  # so far apart that only tags can join them
    assert len(set(find_families(features, np.full(len(tags), 2), tags))) == 1
    labelled = bulk("Cu")
    labelled.info["config_type"] = "ev_copper"
    (drawn,) = sample_pool([labelled], n=1, families=["rattle"]).structures
    assert drawn.info["config_type"] == "rattle_copper"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"closest": 1.5}, "closest is 1.5"),
        ({"families": ["volume", "melt"]}, "family 'melt' is unknown; there are volume"),
        ({"families": []}, "are none or repeated"),
        ({"exclude": [Atoms("Si")]}, "structure to exclude 0: is no crystal"),
    ],
)
def test_draws_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample_pool(known(), **options)


def committee(n=3, size=0.02):
    """The golden silicon model and others with slightly different weights."""
    model = read_model(DATA / "si.model")
    members = [model]
    for seed in range(1, n):
        rng = np.random.default_rng(seed)
        weights = tuple(matrix + size * rng.normal(size=matrix.shape) for matrix in model.weights)
        members.append(replace(model, weights=weights))
    return members


def silicon(n):
    return list(sample_pool(known()[:2], n=n, seed=2, families=["rattle", "volume"]).structures)


def test_disagreement_is_the_spread_of_the_members():
    structures, members = silicon(4), committee()
    opinion = ask_committee(structures, members)
    found = [MaisePotential(model).evaluate(structures) for model in members]
    for row, atoms in enumerate(structures):
        forces = np.array([evaluations[row].forces for evaluations in found])
        spread = [np.sqrt(sum(np.var(forces[:, atom, axis]) for axis in range(3))) for atom in range(len(atoms))]
        assert opinion.disagreement[row] == pytest.approx(max(spread), abs=1e-12)
        energies = [evaluations[row].energy / len(atoms) for evaluations in found]
        assert opinion.energy_spread[row] == pytest.approx(np.std(energies), abs=1e-12)
        outside = max(evaluations[row].extrapolation.max() for evaluations in found)
        assert opinion.extrapolation[row] == outside
    same = ask_committee(structures, [members[0]] * 2)
    assert same.disagreement.max() == same.energy_spread.max() == 0.0
    with pytest.raises(ValueError, match="a committee of 1 cannot disagree"):
        ask_committee(structures, members[:1])


def test_what_leaves_the_input_ranges_is_urgent_without_disagreement():
    opinion = Opinion(np.array([0.1, 0.2, 0.0, 0.3]), np.zeros(4), np.array([0.0, 0.005, 2.0, 0.0]))
    np.testing.assert_allclose(opinion.urgency, [0.5, 0.75, 1.0, 1.0])
    without_forces = Opinion(np.zeros(2), np.array([0.1, 0.2]), np.zeros(2))
    np.testing.assert_allclose(without_forces.urgency, [0.5, 1.0])


def test_mean_descriptors_do_not_depend_on_the_cell():
    model = read_model(DATA / "mgsi.model")
    crystal = bulk("MgSi", "rocksalt", a=5.5)
    other = crystal.repeat((2, 1, 1))[[3, 1, 0, 2]]
    rows = mean_descriptors([crystal, other, bulk("Si", a=5.4)], model.basis, model.species)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-10)
    n_inputs = model.basis.n_inputs(2)
    assert not rows[2, :n_inputs].any()  # no Mg
    assert rows[2, n_inputs:].any()


def test_farthest_points_are_spread_out():
    features = np.array([[0.0], [0.1], [10.0], [4.0], [10.0]])
    assert farthest_points(features, 3) == [0, 2, 3]
    assert farthest_points(features, 5) == [0, 2, 3, 1]  # the last one is a copy
    assert farthest_points(features, 1, start=np.array([[9.0]])) == [0]


def test_selection_is_urgent_diverse_and_independent_of_order():
    structures, members = silicon(24), committee()
    chosen = select_structures(structures, members, 4)
    again = select_structures(structures[::-1], members, 4)
    assert [structure_id(atoms) for atoms in chosen] == [structure_id(atoms) for atoms in again]
    opinion = ask_committee(structures, members)
    urgent = np.argsort(-opinion.urgency, kind="stable")[: 4 * 5]
    assert {structure_id(atoms) for atoms in chosen} <= {structure_id(structures[row]) for row in urgent}
    assert all(atoms.info["config_type"].startswith(("rattle_", "ev_")) for atoms in chosen)
    copies = select_structures([*chosen, *chosen, bulk("Si", a=2.0)], members, 8)
    assert sorted(structure_id(atoms) for atoms in copies) == sorted(structure_id(atoms) for atoms in chosen)
    late = select_structures(chosen, members, 4, known=chosen[:2])
    assert {structure_id(atoms) for atoms in late} == {structure_id(atoms) for atoms in chosen[2:]}
    with pytest.raises(ValueError, match="all 1 structures are too large or have atoms too close"):
        select_structures([bulk("Si", a=2.0)], members, 1)
    with pytest.raises(ValueError, match="0 structures are to be selected"):
        select_structures(structures, members, 0)
    with pytest.raises(ValueError, match="structure has Cu; the model covers Si"):
        select_structures([bulk("Cu")], members, 1)


def test_the_command_draws_and_selects(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("known.extxyz", known()[:2])
    assert main(["sample", "known.extxyz", "--n", "12", "--families", "rattle,volume", "--out", "pool.extxyz"]) == 0
    assert "rattle         8" in capsys.readouterr().out
    pool = read("pool.extxyz", ":")
    expected = sample_pool(read("known.extxyz", ":"), n=12, families=["rattle", "volume"]).structures
    assert [atoms.info["config_type"] for atoms in pool] == [atoms.info["config_type"] for atoms in expected]
    np.testing.assert_allclose(pool[3].positions, expected[3].positions, atol=1e-8)
    for number, model in enumerate(committee(2)):
        write_model(model, f"{number}.model")
    with connect("candidates.db") as rows:
        for atoms in pool:
            atoms.calc = SinglePointCalculator(atoms, energy=1.0)
            rows.write(atoms, status="ranked", data={"latent": [1.0]})
    line = ["sample", "candidates.db", "--select", "3", "--committee", "0.model", "1.model"]
    assert main([*line, "--out", "chosen.extxyz", "--known", "known.extxyz"]) == 0
    chosen = read("chosen.extxyz", ":")
    assert len(chosen) == 3
    for atoms in chosen:
        assert atoms.info["energy_spread"] > 0
        assert atoms.info["config_type"] == f"active_{atoms.get_chemical_formula()}"
    for refused, message in (
        (line[:4], "--select K and --committee MODEL MODEL... belong together"),
        ([*line, "--families", "rattle"], "--families is for drawing"),
        (["sample", "known.extxyz", "--known", "none.extxyz"], "none.extxyz: no such file"),
    ):
        assert main([*refused, "--out", "other.extxyz"]) == 2
        assert message in capsys.readouterr().err
    assert not Path("other.extxyz").exists()
