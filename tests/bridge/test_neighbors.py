"""Neighbour lists: against ASE, both searches, reuse with a skin."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list as ase_neighbor_list

from maise_bridge import neighbors
from maise_bridge.neighbors import NeighborListCache, neighbor_list
from maise_bridge.topology import Topology


def bond_set(centre, neighbour, shift):
    return {tuple(row) for row in np.column_stack([centre, neighbour, np.rint(shift)]).astype(int).tolist()}


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1), (0, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("limit", [0, 10**9], ids=["vesin", "direct"])
def test_bonds_equal_those_of_ase(pbc, limit, monkeypatch):
    monkeypatch.setattr(neighbors, "_MOST_CANDIDATES", limit)
    rng = np.random.default_rng(sum(pbc))
    structures = [
        Atoms(f"Si{n}", rng.normal(size=(n, 3)) * 5, cell=4 * np.eye(3) + rng.normal(size=(3, 3)) * 0.5, pbc=pbc)
        for n in (1, 4, 9)
    ]
    found = neighbor_list(structures, 6.0)
    assert np.all(np.diff(found.centre) >= 0)
    first = 0
    for number, atoms in enumerate(structures):
        mine = found.structure[found.centre] == number
        expected = bond_set(*ase_neighbor_list("ijS", atoms, 6.0))
        got = bond_set(found.centre[mine] - first, found.neighbour[mine] - first, found.shift[mine])
        assert got == expected
        assert mine.sum() == len(expected)
        first += len(atoms)
    lengths = np.linalg.norm(found.vectors, axis=1)
    assert np.all((lengths > 0) & (lengths < 6.0))


def test_diamond_has_86_neighbours_at_the_cutoff_of_the_standard_basis():
    found = neighbor_list([bulk("Si")], 7.4998)
    assert np.bincount(found.centre).tolist() == [86, 86]


def test_reused_list_never_misses_a_bond():
    rng = np.random.default_rng(3)
    atoms = bulk("Si", cubic=True)
    cache = NeighborListCache(5.0, skin=0.5)
    for _ in range(40):
        atoms.positions += rng.normal(size=(8, 3)) * 0.02
        strain = np.eye(3) + rng.normal(size=(3, 3)) * 0.004
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        reused = cache.get([atoms])
        near = np.linalg.norm(reused.vectors, axis=1) < 5.0
        expected = neighbor_list([atoms], 5.0)
        assert bond_set(reused.centre[near], reused.neighbour[near], reused.shift[near]) == bond_set(
            expected.centre, expected.neighbour, expected.shift
        )
    assert 1 < cache.n_searches < 30


def test_a_rotation_needs_no_new_search():
    atoms = bulk("Si", cubic=True)
    cache = NeighborListCache(5.0, skin=0.1)
    cache.get([atoms])
    atoms.rotate(70, "x", rotate_cell=True)
    cache.get([atoms])
    assert cache.n_searches == 1


def test_other_atoms_or_boundaries_are_searched_anew():
    atoms = bulk("Si", cubic=True)
    cache = NeighborListCache(5.0)
    for pbc in (True, False, [True, True, False]):
        atoms.pbc = pbc
        assert len(cache.get([atoms]).centre) >= len(neighbor_list([atoms], 5.0).centre)
    assert cache.n_searches == 3


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "structure 0 has no atoms"),
        (Atoms("Si", [[np.nan, 0, 0]], cell=[3, 3, 3], pbc=True), "not finite"),
        (Atoms("Si", cell=[3, 3, 0], pbc=True), "cell vector of length zero"),
        (Atoms("Si", cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True), "flat cell"),
    ],
)
def test_impossible_structures_are_refused(atoms, message):
    with pytest.raises(ValueError, match=message):
        neighbor_list([atoms], 5.0)


def clumps(*sizes):
    rng = np.random.default_rng(7)
    return [Atoms(f"Si{n}", rng.normal(size=(n, 3)) * 2, cell=4 * np.eye(3), pbc=True) for n in sizes]


def test_topologies_come_apart_and_together_again():
    whole = neighbor_list(clumps(3, 1, 4), 5.0).topology
    again = Topology.join(whole.split())
    for name in ("structure", "centre", "neighbour", "shift"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert again.parts
    for mine, expected in zip(again.triangles, whole.triangles, strict=True):
        np.testing.assert_array_equal(mine, expected)
    (alone,) = neighbor_list(clumps(3), 5.0).topology.split()
    np.testing.assert_array_equal(alone.shift, whole.split()[0].shift)


def test_only_what_moved_or_joined_the_batch_is_searched():
    a, b, c, d = clumps(3, 3, 2, 3)
    cache = NeighborListCache(5.0, skin=0.5)
    cache.get([a, b, c])
    b.positions[0] += 0.5
    for batch, n_searches in (([a, b, c], 4), ([a, c], 4), ([c, d, a], 5), ([a, d, c], 5)):
        found = cache.get(batch)
        assert cache.n_searches == n_searches
        expected = neighbor_list(batch, 5.0)
        near = np.linalg.norm(found.vectors, axis=1) < 5.0
        assert bond_set(found.centre[near], found.neighbour[near], found.shift[near]) == bond_set(
            expected.centre, expected.neighbour, expected.shift
        )


def test_what_is_wrong_with_a_structure_is_said_with_its_place_in_the_batch():
    a, b = clumps(2, 2)
    cache = NeighborListCache(5.0)
    cache.get([a, b])
    b.positions[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"structure 1 .*not finite"):
        cache.get([a, b])
    with pytest.raises(ValueError, match="structure 1 has no atoms"):
        cache.get([a, Atoms()])
