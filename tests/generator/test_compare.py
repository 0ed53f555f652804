import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell

from ase_hvae import compare
from ase_hvae.compare.crystal import PreparedCrystal
from ase_hvae.compare.matching import Matcher
from ase_hvae.data import load_known
from ase_hvae.errors import StructureError
from ase_hvae.symmetry import build_crystal


@pytest.fixture(scope="module")
def known():
    return {atoms.info["name"]: atoms for atoms in load_known("Si")}


def disguise(atoms, rng, *, strain=0.005, rattle=0.01):
    """The same crystal in a skewed supercell, rotated, shifted, permuted, slightly strained and rattled."""
    other = make_supercell(atoms, [[1, 1, 0], [0, 1, 0], [0, -1, 2]])
    deformation = np.eye(3) + strain * rng.uniform(-1, 1, (3, 3))
    other.set_cell(other.cell[:] @ deformation, scale_atoms=True)
    other.rotate(50, (1, 2, 3), rotate_cell=True)
    other.rattle(rattle, rng=rng)
    other.positions += rng.normal(size=3)
    return other[rng.permutation(len(other))]


def test_pearson_correlation_is_that_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 50))
    assert compare.pearson_correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-14)
    assert compare.pearson_correlation(a, 3 * a + 1) == pytest.approx(1.0, abs=1e-14)
    assert compare.pearson_correlation(a, -a) == pytest.approx(-1.0, abs=1e-14)


def test_null_correlation_is_the_mean_over_pairs():
    rows = np.random.default_rng(1).random((5, 40))
    pairs = [compare.pearson_correlation(a, b) for a, b in itertools.combinations(rows, 2)]
    assert compare.null_correlation(rows) == pytest.approx(np.mean(pairs), abs=1e-14)


def test_nearest_finds_the_noisy_original():
    rng = np.random.default_rng(2)
    rows = rng.random((6, 2, 30))  # two channels of a binary crystal
    index, correlation = compare.nearest(rows[4] + 0.01 * rng.normal(size=(2, 30)), rows)
    assert index == 4
    assert 0.99 < correlation < 1


def test_bad_rdfs_are_refused():
    with pytest.raises(ValueError, match="50 and 40 values"):
        compare.pearson_correlation(np.arange(50.0), np.arange(40.0))
    with pytest.raises(ValueError, match="non-finite"):
        compare.pearson_correlation(np.array([0, np.nan, 1]), np.arange(3.0))
    with pytest.raises(ValueError, match="constant"):
        compare.pearson_correlation(np.ones(3), np.arange(3.0))
    with pytest.raises(ValueError, match="at least two RDFs, not 1"):
        compare.null_correlation([np.arange(3.0)])
    with pytest.raises(ValueError, match="no RDFs"):
        compare.nearest(np.arange(3.0), [])


# Coordination sequences from O'Keeffe and the RCSR (nets dia, lon, sod, gsi) and 10 k^2 + 2 for fcc.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("diamond", (4, 12, 24, 42, 64, 92, 124)),
        ("lonsdaleite", (4, 12, 25, 44, 67, 96, 130)),
        ("sodalite-Si", (4, 10, 20, 34, 52, 74, 100)),
        ("fcc", (12, 42, 92, 162, 252, 362, 492)),
    ],
)
def test_coordination_sequences_of_known_nets(known, name, expected):
    assert compare.coordination_sequences(known[name]) == (("Si", expected, 1),)


def test_coordination_sequences_count_what_brute_force_counts(known):
    atoms = known["st12"]
    block = atoms * (5, 5, 5)
    block.pbc = False
    distances = block.get_all_distances()
    bonded = (distances > 0) & (distances < 2.8)
    centre = 12 * (2 * 25 + 2 * 5 + 2)
    counts = set()
    for root in range(centre, centre + 12):
        seen, shell, row = {root}, {root}, []
        for _ in range(3):
            shell = {int(j) for i in shell for j in np.flatnonzero(bonded[i])} - seen
            seen |= shell
            row.append(len(shell))
        counts.add(tuple(row))
    assert {row for _, row, _ in compare.coordination_sequences(atoms, n_shells=3)} == counts


def test_coordination_sequences_tell_elements_apart():
    rutile = build_crystal(419, (4.59, 4.59, 2.96, 90, 90, 90), [(22, (0, 0, 0)), (8, (0.305, 0.305, 0))])
    found = compare.coordination_sequences(rutile, cutoff=1.04, n_shells=1)
    assert [(symbol, row, float(share)) for symbol, row, share in found] == [
        ("O", (3,), pytest.approx(2 / 3)),
        ("Ti", (6,), pytest.approx(1 / 3)),
    ]


@pytest.mark.parametrize("name", ["diamond", "lonsdaleite", "bc8", "r8", "bt8", "st12", "9R", "beta-Sn", "hcp", "M-Si"])
def test_a_crystal_is_itself_in_every_disguise(known, name):
    rng = np.random.default_rng(7)
    atoms = known[name]
    for _ in range(3):
        other = disguise(atoms, rng)
        assert compare.coordination_sequences(other) == compare.coordination_sequences(atoms)
        assert compare.same_crystal(atoms, other)
        assert compare.same_crystal(other, atoms)


def test_all_known_crystals_are_different(known):
    # Among them bc8, r8, bt8 and the polytypes 2H to 15R; prepared once, because 1596 pairs are many.
    prepared = {name: PreparedCrystal(atoms) for name, atoms in known.items()}
    matcher = Matcher()
    same = [(a, b) for a, b in itertools.combinations(prepared, 2) if matcher.same(prepared[a], prepared[b])]
    assert same == []


@pytest.mark.parametrize("pair", [("bc8", "r8"), ("bc8", "bt8"), ("r8", "bt8")])
def test_bond_switched_crystals_stay_apart_when_disguised(known, pair):
    rng = np.random.default_rng(8)
    assert not compare.same_crystal(disguise(known[pair[0]], rng), known[pair[1]])


def test_mirror_images_are_the_same_crystal():
    cell, xyz = (5.72, 5.72, 6.80, 90, 90, 90), [(14, (0.082, 0.082, 0)), (14, (0.1686, 0.3778, 0.2369))]
    right = build_crystal(373, cell, xyz)  # P4_3 2_1 2
    left = right.copy()
    left.set_scaled_positions(-right.get_scaled_positions())
    assert compare.same_crystal(right, left)


def test_elements_decide_between_equal_geometries():
    salt, blende = bulk("NaCl", "rocksalt", a=5.64), bulk("NaCl", "zincblende", a=6.1)
    assert compare.same_crystal(salt, disguise(salt, np.random.default_rng(9)))
    assert not compare.same_crystal(salt, blende)
    assert not compare.same_crystal(salt, bulk("KCl", "rocksalt", a=5.64))
    layers = [[0, 0, 0], [0, 0, 0.5], [0.5, 0.5, 0], [0.5, 0.5, 0.5]]  # NaCl columns instead of a checkerboard
    layered = Atoms("NaClNaCl", scaled_positions=layers, cell=[3.99, 3.99, 5.64], pbc=True)
    assert not compare.same_crystal(salt, layered)


def test_match_known_names_the_crystal(known):
    crystals = list(known.values())
    rng = np.random.default_rng(10)
    for index in (0, 8, 28, 31, 39):
        assert compare.match_known(disguise(crystals[index], rng, strain=0.01), crystals) == index
    random = Atoms("Si5", scaled_positions=rng.random((5, 3)), cell=[4.5, 4.6, 4.7], pbc=True)
    assert compare.match_known(random, crystals) is None


def test_find_duplicates_keeps_the_lowest_of_each_crystal(known):
    rng = np.random.default_rng(11)
    names = ["diamond", "lonsdaleite", "bc8", "r8", "bct-Si"]
    crystals = [disguise(known[name], rng) for _ in range(3) for name in names]
    energies = np.array([0.003, 0.02, 0.16, 0.17, 0.1] * 3) + np.repeat([0.001, 0.0, 0.002], 5)
    found = compare.find_duplicates(crystals, energies)
    assert found[5:10] == [None] * 5
    assert found[:5] == found[10:] == [5, 6, 7, 8, 9]
    order = rng.permutation(15)
    shuffled = compare.find_duplicates([crystals[i] for i in order], energies[order])
    back = {int(i): None if other is None else int(order[other]) for i, other in zip(order, shuffled, strict=True)}
    assert [back[i] for i in range(15)] == found


def test_find_duplicates_keeps_crystals_of_different_energy_apart(known):
    assert compare.find_duplicates([known["diamond"]] * 2, [0.0, 0.5]) == [None, None]


def test_bad_crystals_and_energies_are_refused(known):
    with pytest.raises(ValueError, match="1 crystals need as many energies"):
        compare.find_duplicates([known["diamond"]], [0.0, 1.0])
    with pytest.raises(ValueError, match="energy of crystal 1 is not finite"):
        compare.find_duplicates([known["diamond"]] * 2, [0.0, np.nan])
    broken = known["diamond"].copy()
    broken.positions[0, 0] = np.inf
    with pytest.raises(StructureError, match="structure to compare has a non-finite position"):
        compare.same_crystal(known["diamond"], broken)
