"""Many relaxations at once: the steps of ASE's FIRE, whatever else is in the batch; bounds and refusals."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE

from maise_bridge import MaiseCalculator
from maise_bridge.batch_relax import OPTIMIZERS, batch_relax
from maise_bridge.bounds import Bounds

DATA = Path(__file__).parents[1] / "data" / "bridge"


@pytest.fixture(scope="module")
def calc():
    return MaiseCalculator("silicon")


def crystal(n_atoms, seed):
    rng = np.random.default_rng(seed)
    atoms = bulk("Si", cubic=True)[:n_atoms]
    atoms.rattle(0.2, rng=rng)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.05), scale_atoms=True)
    return atoms


STRUCTURES = [crystal(n_atoms, seed) for seed, n_atoms in enumerate((8, 2, 5, 1, 3))]


@pytest.mark.parametrize("pressure", [0.0, 0.05])
def test_every_crystal_takes_the_steps_of_ase(calc, pressure):
    bounds = Bounds(volume_factor=100, length_factor=10, min_distance=0.1)
    options = {"fmax": 0.2, "max_steps": 25, "scalar_pressure": pressure, "bounds": bounds, "batch_size": 3}
    options["optimizer"] = "FIRE"
    found = {result.index: result for result in batch_relax(STRUCTURES, calc.potential, **options)}
    assert sorted(found) == list(range(len(STRUCTURES)))
    for index, given in enumerate(STRUCTURES):
        atoms = given.copy()
        atoms.calc = calc
        filtered = FrechetCellFilter(atoms, scalar_pressure=pressure)
        dynamics = FIRE(filtered, logfile=None)
        converged = dynamics.run(fmax=0.2, steps=25)
        result = found[index]
        assert (result.n_steps, result.converged, result.failure) == (dynamics.nsteps, converged, None)
        # the same steps: only rounding lies between
        assert result.evaluation.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(result.atoms.positions, atoms.positions, atol=1e-7)
        np.testing.assert_allclose(result.atoms.cell.array, atoms.cell.array, atol=1e-7)
        assert result.fmax == pytest.approx(np.linalg.norm(filtered.get_forces(), axis=1).max(), abs=1e-6)
        assert result.atoms.get_potential_energy() == result.evaluation.energy
        np.testing.assert_array_equal(result.atoms.get_stress(), result.evaluation.stress)


@pytest.mark.parametrize("pressure", [0.0, 0.05])
def test_crystals_of_two_species_take_the_steps_of_ase(pressure):
    calc = MaiseCalculator(DATA / "mgsi.model")
    structures = [bulk("MgSi", crystalstructure="rocksalt", a=5.4), bulk("Mg", "fcc", a=4.5), bulk("Si", a=5.5)]
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.1, seed=seed)
    bounds = Bounds(volume_factor=100, length_factor=10, min_distance=0.1)
    options = {"fmax": 1e-3, "max_steps": 12, "scalar_pressure": pressure, "optimizer": "FIRE", "bounds": bounds}
    for end in batch_relax(structures, calc.potential, batch_size=2, **options):
        atoms = structures[end.index].copy()
        atoms.calc = calc
        dynamics = FIRE(FrechetCellFilter(atoms, scalar_pressure=pressure), logfile=None)
        dynamics.run(fmax=1e-3, steps=12)
        assert end.n_steps == dynamics.nsteps
        assert end.evaluation.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(end.atoms.positions, atoms.positions, atol=1e-7)


@pytest.mark.parametrize("pressure", [0.0, 0.05])
def test_converged_means_forces_and_stress_of_each_crystal(calc, pressure):
    near = [bulk("Si", a=5.6), bulk("Si", cubic=True, a=5.3), bulk("Si", "fcc", a=3.8) * (2, 1, 1)]
    near[1].rattle(0.05, seed=1)
    for end in batch_relax(near, calc.potential, fmax=0.01, scalar_pressure=pressure, batch_size=2):
        assert end.converged
        assert np.linalg.norm(end.evaluation.forces, axis=1).max() < 0.012  # coordinates are those before the strain
        # rows of the virial by n_atoms are what fmax bounds
        excess = end.evaluation.stress + pressure * np.array([1, 1, 1, 0, 0, 0])
        assert np.abs(excess).max() * end.atoms.get_volume() / len(end.atoms) < 0.012


@pytest.mark.parametrize("optimizer", ["BFGS", "FIRE"])
def test_pressure_too_high_for_the_bounds_ends_the_relaxation(calc, optimizer):
    bounds = Bounds(volume_factor=1.3)
    given = [bulk("Si"), bulk("Si", cubic=True)]
    for end in batch_relax(given, calc.potential, scalar_pressure=1.0, bounds=bounds, optimizer=optimizer):
        assert "the volume changed by a factor" in end.failure
        assert end.n_steps > 0
        assert not end.converged
    bounds = Bounds(length_factor=1.01)
    (end,) = batch_relax(given[:1], calc.potential, scalar_pressure=-0.5, bounds=bounds, optimizer=optimizer)
    assert "a cell vector grew by a factor" in end.failure


@pytest.mark.parametrize("optimizer", ["FIRE", "BFGS"])
def test_the_batch_size_changes_no_bit(calc, optimizer):
    options = {"max_steps": 8, "optimizer": optimizer}
    one, many = (
        sorted(batch_relax(STRUCTURES, calc.potential, batch_size=size, **options), key=lambda result: result.index)
        for size in (1, 8)
    )
    for alone, together in zip(one, many, strict=True):
        assert alone.n_steps == together.n_steps
        assert alone.evaluation.energy == together.evaluation.energy
        assert alone.atoms == together.atoms


@pytest.mark.parametrize("pressure", [0.0, 0.05])
def test_bfgs_ends_in_the_minimum_of_ase(calc, pressure):
    near = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        atoms = bulk("Si", cubic=True) if seed else bulk("Si")
        atoms.rattle(0.05, rng=rng)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.01), scale_atoms=True)
        near.append(atoms)
    options = {"fmax": 1e-4, "scalar_pressure": pressure}
    fast, slow = (
        sorted(batch_relax(near, calc.potential, optimizer=name, **options), key=lambda result: result.index)
        for name in ("BFGS", "FIRE")
    )
    for atoms, result, other in zip(near, fast, slow, strict=True):
        atoms.calc = calc
        BFGS(FrechetCellFilter(atoms, scalar_pressure=pressure), logfile=None).run(fmax=1e-4, steps=200)
        assert result.converged
        assert result.n_steps < other.n_steps
        enthalpy = atoms.get_potential_energy() + pressure * atoms.get_volume()
        assert result.evaluation.energy + pressure * result.atoms.get_volume() == pytest.approx(enthalpy, abs=1e-6)
        assert result.atoms.get_volume() == pytest.approx(atoms.get_volume(), rel=1e-4)


@pytest.mark.parametrize("pressure", [0.0, 0.05])
def test_forces_are_the_gradient_of_the_enthalpy_at_large_strains(calc, pressure, monkeypatch):
    step = 1e-4
    start = np.concatenate([np.zeros((8, 3)), 0.4 * np.random.default_rng(0).normal(size=(3, 3))])
    places = [(0, 1), (2, 2), (8, 0), (8, 2), (9, 1), (10, 1)]
    points = [start]
    for place in places:
        for change in (step, -step):
            points.append(start.copy())
            points[-1][place] += change
    seen = []

    class Walk:
        """Goes to one point after the other, whatever the forces."""

        def step(self, forces, enthalpy):
            before = points[len(seen) - 1] if seen else np.zeros_like(start)
            seen.append((forces, enthalpy))
            return points[len(seen) - 1] - before

    monkeypatch.setitem(OPTIMIZERS, "BFGS", Walk)
    options = {"fmax": 1e-9, "max_steps": len(points), "scalar_pressure": pressure}
    bounds = Bounds(volume_factor=100, length_factor=10, min_distance=0.1)
    (end,) = batch_relax([bulk("Si", cubic=True, a=5.3)], calc.potential, bounds=bounds, **options)
    assert end.failure is None
    enthalpies = [enthalpy for _, enthalpy in seen[2:]]
    enthalpies.append(end.evaluation.energy + pressure * end.atoms.get_volume())
    gradient = [(enthalpies[2 * n] - enthalpies[2 * n + 1]) / (2 * step) for n in range(len(places))]
    # central differences err by step^2 times a third derivative of some 10 eV/Å^3
    assert [-seen[1][0][place] for place in places] == pytest.approx(gradient, abs=1e-5)
    assert np.abs(gradient).max() > 0.1


def test_constraints_are_refused_before_the_first_step(calc):
    fixed = STRUCTURES[0].copy()
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match=r"structure 1 \(Si8\) has constraints \(FixAtoms\), but all atoms"):
        batch_relax([STRUCTURES[0], fixed], calc.potential)


def test_structures_are_left_alone_and_no_steps_mean_none(calc):
    before = STRUCTURES[0].copy()
    (result,) = batch_relax(STRUCTURES[:1], calc.potential, max_steps=0)
    assert not result.converged
    assert result.n_steps == 0
    assert result.atoms == before
    assert STRUCTURES[0] == before
    assert STRUCTURES[0].calc is None


def test_what_leaves_its_bounds_ends_with_the_reason_and_the_others_go_on(calc):
    squeezed = Atoms("Si2", [[0, 0, 0], [0, 0, 0.4]], cell=5 * np.eye(3), pbc=True)
    coincident = Atoms("Si2", cell=5 * np.eye(3), pbc=True)
    results = sorted(
        batch_relax([squeezed, STRUCTURES[1], coincident], calc.potential, max_steps=5), key=lambda r: r.index
    )
    assert "0.4 Å apart, limit 0.5 Å (after 0 steps)" in results[0].failure
    assert results[1].failure is None
    assert results[1].n_steps == 5
    assert "0 Å apart" in results[2].failure
    assert [result.converged for result in results] == [False, False, False]
    narrow = Bounds(volume_factor=1.0001)
    (result,) = batch_relax(STRUCTURES[:1], calc.potential, bounds=narrow)
    assert "the volume changed by a factor" in result.failure


def test_senseless_requests_are_refused_before_the_first_step(calc):
    with pytest.raises(ValueError, match="fmax is nan"):
        batch_relax(STRUCTURES, calc.potential, fmax=np.nan)
    with pytest.raises(ValueError, match="optimizer is 'Newton'; choose one of FIRE, BFGS"):
        batch_relax(STRUCTURES, calc.potential, optimizer="Newton")
    with pytest.raises(ValueError, match="batch_size 0"):
        batch_relax(STRUCTURES, calc.potential, batch_size=0)
    with pytest.raises(ValueError, match=r"structure 1 \(Si\) is no crystal"):
        batch_relax([STRUCTURES[0], Atoms("Si")], calc.potential)
    with pytest.raises(ValueError, match="scalar_pressure is inf"):
        batch_relax(STRUCTURES, calc.potential, scalar_pressure=np.inf)
    assert list(batch_relax([], calc.potential)) == []
