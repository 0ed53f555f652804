import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from ase_hvae.errors import RelaxationError, StructureError
from ase_hvae.relax import CellFilter, RelaxLimits, RelaxResult, relax, relax_many
from maise_bridge import MaiseCalculator


class Balloon(Calculator):
    """E = B (V - V0)^2 / (2 V0): no forces, stress B (V - V0) / V0, so that V = V0 (1 - P/B) under pressure P."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, modulus, volume, poison=None):
        super().__init__()
        self.modulus, self.volume, self.poison, self.n_calls = modulus, volume, poison, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.n_calls += 1
        excess = self.atoms.cell.volume - self.volume
        stress = np.zeros(6)
        stress[:3] = self.modulus * excess / self.volume
        self.results = {
            "energy": 0.5 * self.modulus * excess**2 / self.volume,
            "forces": np.zeros((len(self.atoms), 3)),
            "stress": stress,
        }
        if self.poison and self.n_calls > 3:
            self.results[self.poison] = self.results[self.poison] * np.nan


@pytest.mark.parametrize("optimizer", ["BFGS", "FIRE", "LBFGS"])
def test_pressure_shrinks_a_balloon_as_the_formula_says(optimizer):
    atoms = Atoms("H", cell=[3, 3, 3], pbc=True)
    calc = Balloon(modulus=1.0, volume=25.0)
    result = relax(atoms, calc, scalar_pressure=0.1, fmax=1e-6, optimizer=optimizer)
    assert result.converged
    assert result.atoms.cell.volume == pytest.approx(22.5, abs=1e-4)
    assert result.stress[:3] == pytest.approx([-0.1] * 3, abs=1e-6)
    assert result.enthalpy == pytest.approx(result.energy + 0.1 * result.atoms.cell.volume)


def test_lennard_jones_fcc_has_the_lattice_sum_of_the_textbook():
    # Kittel: R0 = 1.09 sigma, E = -8.6 eps per atom with all neighbours;
    # the 5 sigma cut-off with ASE's energy shift leaves out 1.7 %.
    calc = LennardJones(sigma=1.0, epsilon=1.0, rc=5.0, smooth=False)
    result = relax(bulk("Ar", "fcc", a=1.65), calc, fmax=1e-4)
    assert result.converged
    assert np.linalg.norm(result.atoms.cell[0]) == pytest.approx(1.09, abs=0.005)
    assert result.energy == pytest.approx(-8.61, rel=0.02)


@pytest.mark.parametrize(("symbol", "lattice"), [("Cu", 3.590), ("Al", 3.994)])  # EMT's own minima
def test_distorted_fcc_metal_returns_to_its_lattice(symbol, lattice):
    atoms = bulk(symbol, "fcc", a=1.05 * lattice) * (2, 1, 1)
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.02 * np.diag([1, -1, 0])), scale_atoms=True)
    before = atoms.copy()
    result = relax(atoms, EMT(), fmax=1e-3)
    assert result.converged
    assert result.fmax < 1e-3
    assert result.energy < result.energy_initial
    assert (4 * result.atoms.cell.volume / 2) ** (1 / 3) == pytest.approx(lattice, abs=0.01)
    assert np.array_equal(atoms.positions, before.positions)
    assert np.array_equal(atoms.cell, before.cell)
    assert atoms.calc is None


def test_cell_filter_walks_the_path_of_ases_filter():
    atoms = bulk("Cu", "fcc", a=3.8) * (2, 1, 1)
    atoms.rattle(0.1, seed=4)
    paths = []
    for make in (CellFilter, FrechetCellFilter):
        work = atoms.copy()
        work.calc = EMT()
        filtered = make(work, scalar_pressure=0.05)
        FIRE(filtered, logfile=None).run(fmax=1e-6, steps=6)
        paths.append((work.positions, work.cell[:], filtered.get_forces(), filtered.get_potential_energy()))
    for mine, ase in zip(*paths, strict=True):
        assert np.allclose(mine, ase, atol=1e-9)


def test_cell_filter_forces_are_the_gradient_of_the_enthalpy():
    work = bulk("Cu", "fcc", a=3.8) * (2, 1, 1)
    work.rattle(0.1, seed=4)
    work.calc = EMT()
    filtered = CellFilter(work, scalar_pressure=0.05)
    start = filtered.get_positions()
    start[-3:] += 0.4 * np.random.default_rng(0).normal(size=(3, 3))
    filtered.set_positions(start)
    forces = filtered.get_forces()
    for row, column in [(0, 1), (1, 2), (2, 0), (3, 1), (4, 2)]:
        energies = []
        for step in (1e-4, -1e-4):
            moved = start.copy()
            moved[row, column] += step
            filtered.set_positions(moved)
            energies.append(filtered.get_potential_energy())
        # Central differences err by step^2 times a third derivative of order 10 eV/Å^3.
        assert forces[row, column] == pytest.approx((energies[1] - energies[0]) / 2e-4, abs=1e-5)


def test_result_carries_its_own_energy_forces_and_stress():
    calc = EMT()
    result = relax(bulk("Cu", a=3.7), calc)
    relax(bulk("Al", a=4.2), calc)
    assert result.atoms.get_potential_energy() == result.energy
    assert np.array_equal(result.atoms.get_forces(), result.forces)
    assert np.array_equal(result.atoms.get_stress(), result.stress)


def test_not_converging_is_reported_not_raised():
    result = relax(bulk("Cu", a=3.9), EMT(), max_steps=2)
    assert not result.converged
    assert result.n_steps == 2
    assert result.fmax > 0.01


def test_no_steps_evaluates_only():
    result = relax(bulk("Cu", a=3.9), EMT(), max_steps=0)
    assert result.energy == result.energy_initial
    assert np.allclose(result.atoms.cell, bulk("Cu", a=3.9).cell)


@pytest.mark.parametrize("poison", ["energy", "forces", "stress"])
def test_non_finite_results_fail_the_calculation(poison):
    with pytest.raises(CalculationFailed, match=f"non-finite {poison} for H"):
        relax(Atoms("H", cell=[3, 3, 3], pbc=True), Balloon(1.0, 20.0, poison=poison))


def test_evaporation_is_stopped():
    with pytest.raises(RelaxationError, match=r"the volume changed by a factor [34].*, limit 3"):
        relax(Atoms("H", cell=[3, 3, 3], pbc=True), Balloon(1.0, 500.0))


def test_collapse_is_stopped():
    limits = RelaxLimits(min_distance=2.9)
    with pytest.raises(RelaxationError, match=r"two atoms 2\.\d+ Å apart; at least 2\.9 Å"):
        relax(Atoms("H", cell=[3, 3, 3], pbc=True), Balloon(1.0, 10.0), limits=limits)


def test_bad_input_is_refused():
    crystal = bulk("Cu")
    with pytest.raises(ValueError, match="fmax is 0; it must be a positive force"):
        relax(crystal, EMT(), fmax=0)
    with pytest.raises(ValueError, match="optimizer is 'BOGUS'; choose one of BFGS, FIRE, LBFGS"):
        relax(crystal, EMT(), optimizer="BOGUS")
    with pytest.raises(ValueError, match="max_steps is -1"):
        relax(crystal, EMT(), max_steps=-1)
    crystal.positions[0, 0] = np.nan
    with pytest.raises(StructureError, match="structure to relax has a non-finite position"):
        relax(crystal, EMT())


def distorted(symbol, seed):
    rng = np.random.default_rng(seed)
    atoms = bulk(symbol, cubic=True)
    atoms.rattle(0.05, rng=rng)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.01), scale_atoms=True)
    return atoms


@pytest.mark.parametrize(("symbol", "calc"), [("Cu", EMT()), ("Si", MaiseCalculator("silicon"))])
@pytest.mark.parametrize("pressure", [0.0, 0.03])
def test_many_crystals_end_where_each_ends_alone_and_failures_stay_their_own(symbol, calc, pressure):
    squeezed = Atoms(f"{symbol}2", [[0, 0, 0], [0, 0, 0.4]], cell=5 * np.eye(3), pbc=True)
    crystals = [distorted(symbol, 1), squeezed, bulk(symbol), Atoms(symbol)]
    given = [atoms.copy() for atoms in crystals]
    found = dict(relax_many(crystals, calc, fmax=1e-4, scalar_pressure=pressure))
    assert crystals == given
    assert sorted(found) == [0, 1, 2, 3]
    assert isinstance(found[1], StructureError)
    assert isinstance(found[3], StructureError)
    for number in (0, 2):
        result, alone = found[number], relax(crystals[number], calc, fmax=1e-4, scalar_pressure=pressure)
        assert isinstance(result, RelaxResult)
        assert result.converged
        # fmax of 1e-4 eV/Å leaves some 1e-9 eV; ends along soft modes differ by more
        assert result.enthalpy == pytest.approx(alone.enthalpy, abs=1e-6)
        assert result.energy_initial == pytest.approx(alone.energy_initial, abs=1e-9)
        assert result.stress == pytest.approx(alone.stress, abs=2e-5)
        assert result.atoms.get_potential_energy() == result.energy
        assert result.extrapolation == pytest.approx(alone.extrapolation, abs=1e-6)


@pytest.mark.parametrize(("symbol", "calc"), [("Cu", EMT()), ("Si", MaiseCalculator("silicon"))])
def test_leaving_the_bounds_is_one_failure_among_many(symbol, calc):
    limits = RelaxLimits(volume_factor=1.001)
    found = dict(relax_many([bulk(symbol, "fcc", a=3.0), bulk(symbol, "fcc", a=3.0)], calc, limits=limits))
    assert sorted(found) == [0, 1]
    for error in found.values():
        assert isinstance(error, RelaxationError)
        assert "left its bounds" in str(error)
        assert "the volume changed by a factor" in str(error)
