import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.db import connect

from ase_hvae import compare
from ase_hvae.compare.crystal import PreparedCrystal
from ase_hvae.compare.matching import Matcher
from ase_hvae.compare.search import assign_originals, stream_originals
from ase_hvae.data import load_known
from ase_hvae.errors import StructureError
from ase_hvae.rdf import radial_distribution
from ase_hvae.structures import neighbor_pairs
from ase_hvae.symmetry import build_crystal, space_group


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


def test_fingerprint_of_fcc_is_that_on_paper():
    shells = np.sqrt(np.repeat([1 / 2, 1, 3 / 2], [12, 6, 24])) * 4 ** (1 / 3)  # in a, over the length (a^3 / 4)^(1/3)
    assert np.allclose(compare.fingerprint(bulk("Al", a=4.05)), [shells], atol=1e-12)


def test_fingerprint_belongs_to_the_crystal_and_is_continuous(known):
    rng = np.random.default_rng(20)
    for name in ("diamond", "bc8", "clathrate-I", "hcp"):
        atoms = known[name]
        base = compare.fingerprint(atoms)
        other = disguise(atoms, rng, strain=0.0, rattle=0.0)
        assert np.allclose(compare.fingerprint(other), base, atol=1e-9)
        mirrored = atoms.copy()
        mirrored.set_cell(atoms.cell[:] @ np.diag([1, -1, 1]), scale_atoms=True)
        assert np.allclose(compare.fingerprint(mirrored), base, atol=1e-9)
        shift = rng.normal(size=(len(other), 3))
        shift *= 0.05 / np.linalg.norm(shift, axis=1).max()
        other.positions += shift
        length = (atoms.cell.volume / len(atoms)) ** (1 / 3)
        assert np.abs(compare.fingerprint(other) - base).max() <= 2 * 0.05 / length
    salt = compare.fingerprint(bulk("NaCl", "zincblende", a=6.1))
    assert salt.shape == (2, 42)
    assert np.allclose(salt[0], salt[1])


def test_fingerprints_part_no_pair_that_the_rest_takes_for_one(known):
    rng = np.random.default_rng(21)
    for atoms in known.values():
        other = disguise(atoms, rng, strain=0.01, rattle=0.02)
        assert np.abs(compare.fingerprint(other) - compare.fingerprint(atoms)).max() < 0.05  # half the tolerance
    prepared = [PreparedCrystal(atoms) for atoms in known.values()]
    matcher = Matcher(fingerprint_tolerance=np.inf)
    assert not any(matcher.same(a, b) for a, b in itertools.combinations(prepared, 2))


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
    # Among them bc8, r8, bt8 and the polytypes 2H to 15R.
    prepared = {name: PreparedCrystal(atoms) for name, atoms in known.items()}
    matcher = Matcher()
    same = [(a, b) for a, b in itertools.combinations(prepared, 2) if matcher.same(prepared[a], prepared[b])]
    assert same == []


@pytest.mark.parametrize("pair", [("bc8", "r8"), ("bc8", "bt8"), ("r8", "bt8")])
def test_bond_switched_crystals_stay_apart_when_disguised(known, pair):
    rng = np.random.default_rng(8)
    assert not compare.same_crystal(disguise(known[pair[0]], rng), known[pair[1]])


def test_the_cell_does_not_matter(known):
    atoms = known["diamond"]
    conventional = bulk("Si", "diamond", a=(4 * atoms.cell.volume) ** (1 / 3), cubic=True)
    supercell = make_supercell(atoms, [[2, 1, 0], [0, 1, -1], [1, 0, 3]])
    strained = atoms.copy()
    deformation = np.array([[1.01, 0.005, 0], [0.005, 0.99, 0], [0, 0, 1.008]])
    strained.set_cell(atoms.cell[:] @ deformation, scale_atoms=True)
    cells = [atoms, conventional, supercell, strained, disguise(conventional, np.random.default_rng(3))]
    assert all(compare.same_crystal(a, b) for a, b in itertools.permutations(cells, 2))
    assert compare.find_duplicates(cells, np.arange(5) * 1e-4) == [None, 0, 0, 0, 0]


def test_polytypes_stay_apart_when_disguised(known):
    rng = np.random.default_rng(13)
    names = ["diamond", "lonsdaleite", "4H", "6H"]  # 3C, 2H, 4H, 6H
    crystals = [disguise(known[name], rng) for _ in range(2) for name in names]
    assert compare.find_duplicates(crystals, np.repeat([0.0, 0.001], 4)) == [None] * 4 + [0, 1, 2, 3]


def chain_crystal(hall_number):
    """Trigonal selenium: threefold helices, right-handed in P3_121 (441), left-handed in P3_221 (443)."""
    z = {441: 1 / 3, 443: 2 / 3}[hall_number]
    return build_crystal(hall_number, (4.366, 4.366, 4.954, 90, 90, 120), [(34, (0.2254, 0, z))])


def test_mirror_images_are_one_crystal():
    # They have one energy, one RDF and one set of bonds; no property that the search ranks by tells them apart.
    right, left = chain_crystal(441), chain_crystal(443)
    assert [space_group(atoms).number for atoms in (right, left)] == [152, 154]
    assert compare.same_crystal(right, left)
    rng = np.random.default_rng(14)
    assert compare.find_duplicates([right, disguise(left, rng), disguise(right, rng)], [0, 1e-4, 2e-4]) == [None, 0, 0]
    cell, xyz = (5.72, 5.72, 6.80, 90, 90, 90), [(14, (0.082, 0.082, 0)), (14, (0.1686, 0.3778, 0.2369))]
    st12 = build_crystal(373, cell, xyz)  # P4_3 2_1 2
    mirrored = st12.copy()
    mirrored.set_scaled_positions(-st12.get_scaled_positions())
    assert compare.same_crystal(st12, mirrored)


def test_a_chiral_crystal_without_symmetry_is_its_mirror_image():
    rng = np.random.default_rng(15)
    right = Atoms(
        "Si4", scaled_positions=rng.random((4, 3)), cell=4.5 * np.eye(3) + rng.uniform(-1, 1, (3, 3)), pbc=True
    )
    left = right.copy()
    left.set_cell(right.cell[:] @ np.diag([1, 1, -1]), scale_atoms=True)
    left.set_cell(left.cell[[1, 0, 2]])  # right-handed again, the same lattice
    assert space_group(right).number == 1
    assert compare.same_crystal(right, left)


def homometric_pair(spacing, a):
    """Rows of atoms at {0, 1, 3, 4} and {0, 1, 2, 5} eighths of a period, Patterson's pair (1944); square lattice."""
    return [
        Atoms("Si4", scaled_positions=[[0, 0, z / 8] for z in places], cell=[a, a, 8 * spacing], pbc=True)
        for places in ((0, 1, 3, 4), (0, 1, 2, 5))
    ]


@pytest.mark.parametrize(("spacing", "a"), [(2.35, 2.6), (1.2, 4.2), (2.3, 4.0), (1.0, 3.0)])
@pytest.mark.parametrize("fingerprint_tolerance", [0.1, 10.0])
def test_homometric_crystals_stay_apart(spacing, a, fingerprint_tolerance):
    first, second = homometric_pair(spacing, a)
    lengths = [np.sort(neighbor_pairs(atoms, 9.0)[3]) for atoms in (first, second)]
    assert np.allclose(*lengths, atol=1e-9)  # every distance as often: one RDF
    assert compare.pearson_correlation(*radial_distribution([first, second])) > 1 - 1e-9
    assert not compare.same_crystal(first, second, fingerprint_tolerance=fingerprint_tolerance)
    rng = np.random.default_rng(16)
    copies = [disguise(first, rng), disguise(second, rng)]
    found = compare.find_duplicates([first, second, *copies], [0, 0, 1e-4, 1e-4])
    assert found[2:] == [0, 1]


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


def test_new_crystals_are_new_to_every_reference(known, tmp_path):
    rng = np.random.default_rng(19)
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("r8", "hcp"):
        known[name].write(folder / f"{name}.cif")
    known["st12"].write(tmp_path / "st12.extxyz", write_info=False)
    with connect(tmp_path / "user.db") as database:
        database.write(disguise(known["bct-Si"], rng))
        database.write(bulk("NaCl", "rocksalt", a=5.64))
    table = [known["diamond"], known["bc8"]]
    references = (table, folder, str(tmp_path / "st12.extxyz"), tmp_path / "user.db")
    asked = [disguise(known[name], rng) for name in ("bc8", "hcp", "r8", "st12", "bct-Si", "lonsdaleite", "diamond")]
    asked.append(disguise(bulk("NaCl", "rocksalt", a=5.6), rng))
    found = compare.find_known(asked, *references)
    assert [None if atoms is None else atoms.info.get("source", atoms.info.get("name")) for atoms in found] == [
        "bc8",
        "hcp.cif#0",
        "r8.cif#0",
        "st12.extxyz#0",
        "user.db#0",
        None,
        "diamond",
        "user.db#1",
    ]
    assert found[0] is table[1]
    with pytest.raises(StructureError, match=r"nothing\.cif does not exist"):
        compare.find_known(asked, tmp_path / "nothing.cif")
    with pytest.raises(ValueError, match="no references"):
        compare.find_known(asked)


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


def test_duplicates_do_not_depend_on_the_order_even_at_equal_energy(known):
    rng = np.random.default_rng(17)
    names = ["diamond", "bc8", "r8", "hcp", "st12"]
    crystals = [disguise(known[name], rng) for _ in range(3) for name in names]
    expected = compare.find_duplicates(crystals, np.zeros(15))
    assert sorted(other is None for other in expected) == [False] * 10 + [True] * 5
    for _ in range(4):
        order = rng.permutation(15)
        found = compare.find_duplicates([crystals[i] for i in order], np.zeros(15))
        back = {int(i): None if other is None else int(order[other]) for i, other in zip(order, found, strict=True)}
        assert [back[i] for i in range(15)] == expected


def test_chains_never_merge_their_ends_unless_the_middle_is_lowest(known):
    # Sameness is not transitive: the volumes of a, b and c differ by 4 %, those of a and c by 8 %.
    chain = []
    for factor in (1.0, 1.04, 1.08):
        atoms = known["diamond"].copy()
        atoms.set_cell(atoms.cell * factor ** (1 / 3), scale_atoms=True)
        chain.append(atoms)
    same = [compare.same_crystal(chain[i], chain[j], volume_tolerance=0.05) for i, j in ((0, 1), (1, 2), (0, 2))]
    assert same == [True, True, False]
    for energies, expected in [
        ([0.0, 0.0, 0.0], [None, 0, None]),
        ([0.0, 0.001, 0.002], [None, 0, None]),
        ([0.002, 0.001, 0.0], [None, 2, None]),
        ([0.001, 0.0, 0.002], [1, None, 1]),
    ]:
        for order in itertools.permutations(range(3)):
            found = compare.find_duplicates([chain[i] for i in order], [energies[i] for i in order])
            back = {i: None if other is None else order[other] for i, other in zip(order, found, strict=True)}
            assert [back[i] for i in range(3)] == expected


def test_few_pairs_are_left_for_structure_matcher(known):
    rng = np.random.default_rng(18)
    small = [atoms for atoms in known.values() if len(atoms) <= 8]
    origin = rng.integers(len(small), size=200)
    crystals = [disguise(small[i], rng) for i in origin]
    matcher = Matcher(volume_tolerance=0.05)
    found = assign_originals(crystals, np.zeros(200), matcher, energy_tolerance=0.02, symprec=0.1)
    n_kept = found.count(None)
    assert n_kept == len(set(origin))
    assert all(other is None or origin[i] == origin[other] for i, other in enumerate(found))
    assert matcher.counts.same == 200 - n_kept
    assert matcher.counts.near <= 1.1 * matcher.counts.same  # of 711 pairs of like volume
    assert matcher.counts.same_bonds <= 1.05 * matcher.counts.same  # of 19900 pairs


def test_find_duplicates_keeps_crystals_of_different_energy_apart(known):
    assert compare.find_duplicates([known["diamond"]] * 2, [0.0, 0.5]) == [None, None]


def test_bad_crystals_and_energies_are_refused(known):
    with pytest.raises(ValueError, match="1 crystals need as many energies"):
        compare.find_duplicates([known["diamond"]], [0.0, 1.0])
    with pytest.raises(ValueError, match="energy_tolerance is -1; it must not be negative"):
        compare.find_duplicates([known["diamond"]], [0.0], energy_tolerance=-1)
    with pytest.raises(ValueError, match="energy of crystal 1 is not finite"):
        compare.find_duplicates([known["diamond"]] * 2, [0.0, np.nan])
    broken = known["diamond"].copy()
    broken.positions[0, 0] = np.inf
    with pytest.raises(StructureError, match="structure to compare has a non-finite position"):
        compare.same_crystal(known["diamond"], broken)


def test_streaming_forgets_low_crystals_and_refuses_falling_energies():
    matcher = Matcher()
    copies = [(0, bulk("Si"), -5.0), (1, bulk("Si"), -4.9905), (2, bulk("Si"), -4.97), (3, bulk("Si"), -4.965)]
    found = dict(stream_originals(iter(copies), matcher, energy_tolerance=0.01, symprec=0.1))
    assert found == {0: None, 1: 0, 2: None, 3: 2}
    assert matcher.counts.compared == 2  # 2 does not meet 0, nor 3
    with pytest.raises(ValueError, match="energy of crystal 0 is -5"):
        list(stream_originals(reversed(copies[:2]), matcher, energy_tolerance=0.01, symprec=0.1))
