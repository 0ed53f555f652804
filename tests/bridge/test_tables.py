"""Descriptor tables: derivatives of every input by positions and strain."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from maise_bridge.basis import standard_basis
from maise_bridge.tables import descriptor_tables

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
BASIS = standard_basis(30)


def strained(atoms, column, amount):
    """Structure after the displacement or (symmetric) strain that belongs to a column of the tables."""
    atoms = atoms.copy()
    if column < 3 * len(atoms):
        atoms.positions[column // 3, column % 3] += amount
        return atoms
    x, y = VOIGT[column - 3 * len(atoms)]
    strain = np.eye(3)
    strain[x, y] += amount / 2
    strain[y, x] += amount / 2
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return atoms


def test_values_of_a_pair_of_atoms_follow_the_formulas():
    r = 2.3
    values, derivatives = descriptor_tables(Atoms("Si2", [[0, 0, 0], [0, 0, r]]), BASIS, ["Si"])
    fc = 0.5 * (1 + np.cos(np.pi * r / BASIS.cutoff))
    expected = np.exp(-BASIS.radial[:, 0] * r**2) * fc
    np.testing.assert_allclose(values[0, :8], expected, rtol=1e-14)
    assert np.all(values[:, 8:] == 0)
    np.testing.assert_allclose(derivatives[0, :8, 3 + 2], -derivatives[0, :8, 2], rtol=1e-14)


def test_value_of_an_equilateral_triangle_follows_the_formula():
    r = 2.0
    atoms = Atoms("Si3", [[0, 0, 0], [r, 0, 0], [r / 2, r * np.sqrt(0.75), 0]])
    values, _ = descriptor_tables(atoms, BASIS, ["Si"])
    fc = 0.5 * (1 + np.cos(np.pi * r / BASIS.cutoff))
    eta, zeta, sign = BASIS.angular.T
    expected = 2 ** (1 - zeta) * 2 * (1 + sign * 0.5) ** zeta * np.exp(-eta * 3 * r**2) * fc**3
    np.testing.assert_allclose(values[:, 8:], np.tile(expected, (3, 1)), rtol=1e-13)


@pytest.mark.parametrize("species", [["Si"], ["Ge", "Si"], ["C", "Ge", "Si"]])
def test_derivatives_equal_finite_differences(species):
    step = 1e-4
    rng = np.random.default_rng(5)
    atoms = Atoms(rng.choice(species, 3), cell=np.eye(3) * 3.6 + rng.normal(size=(3, 3)) * 0.3, pbc=True)
    atoms.set_scaled_positions([[0.02, 0.0, 0.0], [0.5, 0.48, 0.1], [0.1, 0.5, 0.55]])
    _, derivatives = descriptor_tables(atoms, BASIS, species)
    for column in range(0, 15, 2):
        moved = [descriptor_tables(strained(atoms, column, n * step), BASIS, species)[0] for n in (2, 1, -1, -2)]
        numerical = (-moved[0] + 8 * moved[1] - 8 * moved[2] + moved[3]) / (12 * step)
        # fourth order, but fc has a step in its second derivative, which bonds crossing the cutoff meet
        np.testing.assert_allclose(derivatives[..., column], numerical, atol=2e-8 * np.abs(numerical).max())


def test_uniform_translation_changes_nothing():
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    _, derivatives = descriptor_tables(atoms, BASIS, ["Si"])
    total = derivatives[..., :-6].reshape(8, -1, 8, 3).sum(2)
    np.testing.assert_allclose(total, 0, atol=1e-12 * np.abs(derivatives).max())


def test_species_outside_the_model_are_refused():
    with pytest.raises(ValueError, match="structure has Sn; the model covers Si, Ge"):
        descriptor_tables(bulk("Sn"), BASIS, ["Si", "Ge"])
