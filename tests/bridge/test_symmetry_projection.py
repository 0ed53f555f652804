"""Relaxations that keep a space group: ASE's FixSymmetry, gradients, minima, release, refusals."""

import dataclasses

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import FIRE
from ase.spacegroup import crystal

from maise_bridge import MaiseCalculator
from maise_bridge.batch_relax import batch_relax
from maise_bridge.cli import main
from maise_bridge.symmetry_projection import Operations, projector, symmetrized
from maise_bridge.symmetry_release import release


@pytest.fixture(scope="module")
def calc():
    return MaiseCalculator("silicon")


def crystals():
    """Away from their minima: bc8, bct, simple hexagonal, a supercell of diamond."""
    bc8 = crystal("Si", [(0.11, 0.11, 0.11)], spacegroup=206, cellpar=[6.7] * 3 + [90] * 3, primitive_cell=True)
    bct = crystal("Si", [(0.0, 0.19, 0.5)], spacegroup=139, cellpar=[6.4, 6.4, 3.9, 90, 90, 90], primitive_cell=True)
    hexagonal = Atoms("Si", cell=[[2.7, 0, 0], [-1.35, 1.35 * 3**0.5, 0], [0, 0, 2.6]], pbc=True)
    plain = [Atoms(a.numbers, a.positions, cell=a.cell, pbc=True) for a in (bc8, bct)]
    return [*plain, hexagonal, bulk("Si", a=5.6) * (2, 1, 1)]


def group(atoms, symprec):
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    return spglib.get_symmetry_dataset(cell, symprec=symprec).number


def in_order(ends):
    return sorted(ends, key=lambda end: end.index)


@pytest.fixture(scope="module")
def prepared():
    return tuple(map(list, zip(*map(symmetrized, crystals()), strict=True)))


def test_the_steps_are_those_of_fixsymmetry(calc, prepared):
    """Small steps, so that FixSymmetry, which symmetrizes them in the moving cell, has no error of its own."""
    structures, symmetry = prepared
    options = {"optimizer": "FIRE", "max_steps": 400, "fmax": 2e-3}
    for given, end in zip(
        structures, in_order(batch_relax(structures, calc.potential, symmetry=symmetry, **options)), strict=True
    ):
        atoms = given.copy()
        atoms.set_constraint(FixSymmetry(atoms))
        atoms.calc = calc
        FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=2e-3, steps=400)
        assert end.converged
        # forces of 0.002 eV/Å leave energies within 1e-6 eV of a minimum with curvatures of some eV/Å²
        assert end.evaluation.energy == pytest.approx(atoms.get_potential_energy(), abs=5e-6)


@pytest.mark.parametrize("pressure", [0.0, 0.03])
def test_space_groups_never_drop_and_freedom_never_costs(calc, prepared, pressure):
    structures, symmetry = prepared
    options = {"scalar_pressure": pressure, "fmax": 1e-3}
    ends = in_order(batch_relax(structures, calc.potential, symmetry=symmetry, **options))
    for given, end in zip(structures, ends, strict=True):
        assert end.converged
        assert end.n_steps > 0
        held = spglib.get_symmetry_dataset(
            (end.atoms.cell.array, end.atoms.get_scaled_positions(), end.atoms.numbers), symprec=1e-7
        )
        assert held.number >= group(given, 1e-5)
        assert len(held.rotations) >= len(symmetry[end.index].rotations)
    released = in_order(release(ends, calc.potential, **options))
    for before, after in zip(ends, released, strict=True):
        fall = before.evaluation.energy - after.evaluation.energy
        fall += pressure * (before.atoms.get_volume() - after.atoms.get_volume())
        assert fall == 0 or fall > 1e-3 * len(before.atoms)
        assert after.n_steps > before.n_steps


def test_a_saddle_that_its_symmetry_holds_is_left_by_release(calc):
    """Body-centred cubic silicon is no minimum: kept cubic, it stays; set free, it falls."""
    atoms, operations = symmetrized(bulk("Si", "bcc", a=3.1) * (2, 1, 1))
    (held,) = batch_relax([atoms], calc.potential, symmetry=[operations])
    assert held.converged
    assert group(held.atoms, 1e-6) == 229
    (free,) = release([held], calc.potential)
    assert free.converged
    assert free.evaluation.energy < held.evaluation.energy - 0.02  # ten times the tolerance of two atoms
    assert group(free.atoms, 1e-3) != 229
    (again,) = release([held], calc.potential)
    assert again.atoms == free.atoms


def test_the_batch_size_changes_no_bit(calc, prepared):
    structures, symmetry = prepared
    symmetry = [*symmetry[:-1], None]
    one, many = (
        in_order(batch_relax(structures, calc.potential, symmetry=symmetry, batch_size=size, max_steps=8))
        for size in (1, 8)
    )
    for alone, together in zip(one, many, strict=True):
        assert alone.evaluation.energy == together.evaluation.energy
        assert alone.atoms == together.atoms


def test_the_projected_gradient_is_the_derivative_along_symmetric_paths(calc, prepared):
    structures, symmetry = prepared
    for atoms, operations in zip(structures, symmetry, strict=True):
        onto = projector(atoms, operations)
        np.testing.assert_allclose(onto, onto.T, atol=1e-12)
        direction = onto @ np.random.default_rng(3).normal(size=len(onto))
        direction /= np.linalg.norm(direction)
        start = evaluate(calc, atoms, 0 * direction)
        analytic = -direction @ np.concatenate([start.forces.ravel(), -(len(atoms) ** -1) * virial(start).ravel()])
        energies = [evaluate(calc, atoms, step * direction).energy for step in (1e-4, -1e-4)]
        # central differences err by 1e-8 times a third derivative of order 100 eV/Å³
        assert (energies[0] - energies[1]) / 2e-4 == pytest.approx(analytic, abs=1e-5)
        full = np.concatenate([start.forces.ravel(), -(len(atoms) ** -1) * virial(start).ravel()])
        np.testing.assert_allclose(onto @ full, full, atol=1e-8)  # a symmetric crystal has symmetric forces


class Noisy:
    """The silicon potential with forces and virials off by up to some 0.05 eV/Å, as a loose calculation has them."""

    def __init__(self, potential):
        self.potential, self.cutoff = potential, potential.cutoff

    def evaluate(self, structures, *, neighbors=None):
        rng = np.random.default_rng(0)
        return [
            dataclasses.replace(
                end,
                forces=end.forces + 0.05 * rng.normal(size=end.forces.shape),
                virial=end.virial + 0.05 * rng.normal(size=6),
            )
            for end in self.potential.evaluate(structures, neighbors=neighbors)
        ]


@pytest.mark.parametrize("optimizer", ["BFGS", "FIRE"])
def test_noise_breaks_no_symmetry_that_is_kept(calc, prepared, optimizer):
    structures, symmetry = prepared[0][:3], prepared[1][:3]  # a supercell keeps what its lattice allows
    options = {"optimizer": optimizer, "max_steps": 6, "fmax": 1e-6}
    kept = in_order(batch_relax(structures, Noisy(calc.potential), symmetry=symmetry, **options))
    lost = in_order(batch_relax(structures, Noisy(calc.potential), **options))
    for given, with_symmetry, without in zip(structures, kept, lost, strict=True):
        assert group(with_symmetry.atoms, 1e-7) >= group(given, 1e-5)
        assert group(without.atoms, 1e-4) < group(given, 1e-5)


def test_the_command_keeps_symmetries(tmp_path, capsys):
    given = crystals()[2] * (1, 1, 2)
    given.positions += 1e-3 * np.random.default_rng(1).normal(size=(2, 3))
    write(tmp_path / "in.extxyz", given)
    arguments = ["relax", str(tmp_path / "in.extxyz"), "--out", str(tmp_path / "out.extxyz"), "--fmax", "0.001"]
    assert main([*arguments, "--keep-symmetry"]) == 0
    assert group(read(tmp_path / "out.extxyz"), 1e-5) == 191
    assert main([*arguments, "--overwrite", "--keep-symmetry", "--fixed-cell"]) == 2
    assert "--keep-symmetry keeps symmetries of crystals" in capsys.readouterr().err


def virial(evaluation):
    return evaluation.virial[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)


def evaluate(calc, atoms, change):
    """Energy after a change of the coordinates of batch_relax, to first order in log F."""
    moved = atoms.copy()
    deformation = np.eye(3) + change[-9:].reshape(3, 3) / len(atoms)
    moved.set_cell(atoms.cell.array @ deformation.T)
    moved.positions = (atoms.positions + change[:-9].reshape(-1, 3)) @ deformation.T
    return calc.potential.evaluate([moved])[0]


def test_symmetries_that_a_crystal_does_not_have_are_refused(calc, prepared):
    structures, symmetry = prepared
    rattled = structures[0].copy()
    rattled.rattle(0.05, seed=1)
    with pytest.raises(ValueError, match=r"does not have operation \d+: an atom is taken .* limit 0.001 Å"):
        batch_relax([rattled], calc.potential, symmetry=[symmetry[0]])
    strained = structures[2].copy()
    strained.set_cell(strained.cell.array * [1.1, 1, 1], scale_atoms=True)
    with pytest.raises(ValueError, match=r"the lattice of Si does not have operation \d+"):
        batch_relax([strained], calc.potential, symmetry=[symmetry[2]])
    with pytest.raises(ValueError, match="symmetry has 1 entries for 2 structures"):
        batch_relax(structures[:2], calc.potential, symmetry=symmetry[:1])
    third = np.array([[0, -1, 0], [1, -1, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="the 2 operations of Si are no group"):
        projector(structures[2], Operations(np.array([np.eye(3, dtype=int), third]), np.zeros((2, 3))))
    for wrong, message in ((np.nan, "no finite crystal"), (-5.0, "determinant")):
        bad = bulk("Si", cubic=True)
        bad.cell[0] *= wrong
        with pytest.raises(ValueError, match=message):
            symmetrized(bad)
    with pytest.raises(ValueError, match="symprec is 0"):
        symmetrized(structures[0], symprec=0)
