"""Compiled loops: triangles counted by hand and by brute force, derivatives by bond lengths, tables of factors."""

from itertools import combinations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list as ase_neighbor_list

from maise_bridge import kernels
from maise_bridge.basis import standard_basis
from maise_bridge.compiled import CompiledFunctions
from maise_bridge.neighbors import neighbor_list


def rattled(n_atoms, seed, pbc=True):
    rng = np.random.default_rng(seed)
    cell = 4.0 * np.eye(3) + rng.normal(size=(3, 3)) * 0.4
    return Atoms(f"Si{n_atoms}", rng.random((n_atoms, 3)) @ cell * 1.7, cell=cell, pbc=pbc)


def corners(atoms, cutoff):
    """Pairs of neighbours of every atom that are neighbours of each other: three for each triangle."""
    centre, vectors = ase_neighbor_list("iD", atoms, cutoff)
    total = 0
    for i in range(len(atoms)):
        pairs = combinations(vectors[centre == i], 2)
        total += sum(np.linalg.norm(a - b) < cutoff for a, b in pairs)
    return total


@pytest.mark.parametrize("n_atoms", [1, 2, 5])
@pytest.mark.parametrize("pbc", [True, (True, True, False), False])
def test_every_triangle_is_found_once(n_atoms, pbc):
    atoms = rattled(n_atoms, seed=n_atoms, pbc=pbc)
    found = neighbor_list([atoms], 5.0)
    starts, second, third = found.topology.triangles
    assert 3 * len(second) == corners(atoms, 5.0)
    assert len({*zip(second.tolist(), third.tolist(), strict=True)}) == len(second) == starts[-1]
    vectors, squares = found.measured
    first = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    np.testing.assert_allclose(vectors[first] + vectors[third], vectors[second], atol=1e-12)
    np.testing.assert_allclose(squares, (vectors**2).sum(1))


def test_an_equilateral_triangle_has_the_sums_worked_out_on_paper():
    atoms = Atoms("Si3", [[0, 0, 0], [3, 0, 0], [1.5, 1.5 * np.sqrt(3), 0]])
    basis = standard_basis()
    functions = CompiledFunctions(basis, 1)
    bonds = neighbor_list([atoms], basis.cutoff)
    descriptors = functions.forward(bonds.topology, functions.shells(bonds.measured[1]), np.zeros(3, dtype=int))
    taper = 0.5 * (1 + np.cos(3 * np.pi / basis.cutoff))
    eta, zeta, sign = basis.angular.T
    expected = 2 ** (1 - zeta) * 2 * (1 + 0.5 * sign) ** zeta * np.exp(-27 * eta) * taper**3
    np.testing.assert_allclose(descriptors[:, len(basis.radial) :], np.tile(expected, (3, 1)), rtol=1e-13)
    pairs = 2 * np.exp(-9 * basis.radial[:, 0]) * taper
    np.testing.assert_allclose(descriptors[:, : len(basis.radial)], np.tile(pairs, (3, 1)), rtol=1e-13)


@pytest.mark.parametrize("n_species", [1, 2, 3])
def test_slopes_are_derivatives_by_squared_bond_lengths(n_species):
    rng = np.random.default_rng(n_species)
    basis = standard_basis(30)
    functions = CompiledFunctions(basis, n_species)
    bonds = neighbor_list([rattled(4, seed=7)], basis.cutoff)
    species = rng.integers(n_species, size=4)
    squares = bonds.measured[1]
    gradient = rng.normal(size=(4, functions.n_inputs))

    def value(squares):
        return np.sum(gradient * functions.forward(bonds.topology, functions.shells(squares), species))

    slopes = functions.backward(bonds.topology, functions.shells(squares), species, gradient)
    for bond in rng.choice(np.flatnonzero(squares < 0.8 * basis.cutoff**2), 6, replace=False):
        step = np.zeros_like(squares)
        step[bond] = 1e-5
        difference = (value(squares + step) - value(squares - step)) / 2e-5
        assert slopes[bond] == pytest.approx(difference, rel=1e-6, abs=1e-6)


def test_straight_chains_have_finite_derivatives():
    # neighbours along a line have cosines of exactly -1 and 1, where a power's derivative must not divide by zero
    basis = standard_basis()
    functions = CompiledFunctions(basis, 1)
    bonds = neighbor_list([bulk("Si", "sc", a=2.5)], basis.cutoff)
    shells = functions.shells(bonds.measured[1])
    slopes = functions.backward(bonds.topology, shells, np.zeros(1, dtype=int), np.ones((1, functions.n_inputs)))
    assert np.isfinite(slopes).all()


def test_bases_with_other_powers_or_too_many_radii_do_not_fit():
    angular = standard_basis().angular
    assert kernels.fits(angular)
    assert kernels.fits(standard_basis(30).angular)
    assert not kernels.fits(np.add(angular, [0, 1, 0]))
    assert not kernels.fits(np.array([[0.01 * n, 1, 1] for n in range(kernels.LANES + 1)]))
