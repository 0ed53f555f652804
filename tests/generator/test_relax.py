import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixCom
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE

from ase_hvae.errors import RelaxationError, StructureError
from ase_hvae.relax import RelaxLimits, RelaxResult, relax, relax_many
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


@pytest.mark.parametrize("optimizer", ["BFGS", "FIRE"])
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


def metals():
    """Strained and rattled crystals of EMT metals: fcc, hcp and an alloy."""
    rng = np.random.default_rng(5)
    found = [bulk("Cu", cubic=True), bulk("Al", "hcp", a=2.86, c=4.7), bulk("Cu", "fcc", a=3.85) * (2, 1, 1)]
    found[2].symbols[1] = "Au"
    for atoms in found:
        atoms.rattle(0.05, rng=rng)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.02), scale_atoms=True)
    return found


class Counting(EMT):
    """EMT that keeps energy and volume of every calculation, and fails at the given one."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.seen, self.fails_at = [], fails_at

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if len(self.seen) == self.fails_at:
            self.fails_at = None
            raise CalculationFailed("the program crashed")
        super().calculate(atoms, properties, system_changes)
        self.seen.append((self.results["energy"], self.atoms.get_volume()))


@pytest.mark.parametrize(("number", "pressure"), [(0, 0.0), (1, 0.03), (2, 0.03)])
def test_minimum_is_that_of_ase_at_fewer_calculations_and_the_lowest_of_all_points(number, pressure):
    given = metals()[number]
    calc, by_fire, by_bfgs = Counting(), Counting(), Counting()
    result = relax(given, calc, fmax=1e-3, scalar_pressure=pressure)
    enthalpies = []
    for oracle, optimizer in ((by_fire, FIRE), (by_bfgs, BFGS)):
        atoms = given.copy()
        atoms.calc = oracle
        assert optimizer(FrechetCellFilter(atoms, scalar_pressure=pressure), logfile=None).run(fmax=1e-3, steps=400)
        enthalpies.append(atoms.get_potential_energy() + pressure * atoms.get_volume())
    assert result.converged
    # errors of the minima are fmax^2 / (2 k), some 1e-7 eV
    assert [result.enthalpy] * 2 == pytest.approx(enthalpies, abs=1e-6)
    assert result.n_steps + 1 == len(calc.seen) <= len(by_bfgs.seen) < len(by_fire.seen)
    # points that are not taken back never rise, so that the last one is the lowest
    assert result.enthalpy <= min(energy + pressure * volume for energy, volume in calc.seen) + 1e-8


def test_fire_takes_the_steps_of_ase():
    for given in metals():
        result = relax(given, EMT(), fmax=1e-6, max_steps=12, optimizer="FIRE", scalar_pressure=0.05)
        atoms = given.copy()
        atoms.calc = EMT()
        FIRE(FrechetCellFilter(atoms, scalar_pressure=0.05), logfile=None).run(fmax=1e-6, steps=12)
        # the same steps: only rounding lies between
        np.testing.assert_allclose(result.atoms.positions, atoms.positions, atol=1e-9)
        np.testing.assert_allclose(result.atoms.cell.array, atoms.cell.array, atol=1e-9)
        assert result.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


@pytest.mark.parametrize("optimizer", ["BFGS", "FIRE"])
@pytest.mark.parametrize("max_steps", [0, 3, 200])
def test_every_step_costs_one_calculation(optimizer, max_steps):
    calc = Counting()
    result = relax(metals()[0], calc, optimizer=optimizer, max_steps=max_steps)
    assert len(calc.seen) == result.n_steps + 1 <= max_steps + 1
    assert result.converged == (max_steps == 200)


def test_a_failing_calculator_fails_one_crystal_among_many():
    for fails_at in (0, 2):
        found = dict(relax_many([metals()[0], metals()[1]], Counting(fails_at)))
        assert isinstance(found[0], CalculationFailed)
        assert str(found[0]) == "the program crashed"
        assert found[1].converged
        with pytest.raises(CalculationFailed, match="the program crashed"):
            relax(metals()[0], Counting(fails_at))


class Jump(EMT):
    """EMT with energies that are higher by 20 meV/atom below a volume, as where the mesh of k-points changes."""

    def __init__(self, volume):
        super().__init__()
        self.volume = volume

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["energy"] += 0.02 * len(self.atoms) * (self.atoms.get_volume() < self.volume)
        self.results["free_energy"] = self.results["energy"]


@pytest.mark.parametrize("share", [0.3, 0.95, 0.99])  # of the way to the minimum
def test_a_jump_of_the_energy_on_the_way_does_not_stop_a_relaxation(share):
    atoms = bulk("Cu", cubic=True, a=3.75)
    atoms.rattle(0.05, seed=1)
    smooth = relax(atoms, EMT(), fmax=1e-3)
    volume = atoms.get_volume() + share * (smooth.atoms.get_volume() - atoms.get_volume())
    rough = relax(atoms, Jump(volume), fmax=1e-3, max_steps=smooth.n_steps + 10)
    assert rough.converged
    assert EMT().get_potential_energy(rough.atoms) == pytest.approx(smooth.energy, abs=1e-6)
    assert rough.energy == pytest.approx(smooth.energy + 0.02 * len(atoms), abs=1e-6)


class FewWaves(EMT):
    """EMT with energies that noise and a slope in the volume, 1.6 GPa, part from forces and stress."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        noise = 1e-3 * np.sin(1e7 * self.results["energy"])
        self.results["energy"] += noise - 0.01 * self.atoms.get_volume()
        self.results["free_energy"] = self.results["energy"]


def test_energies_that_do_not_fit_the_forces_do_not_stop_a_relaxation():
    for given in metals():
        smooth, rough = (relax(given, calc, fmax=1e-3) for calc in (EMT(), FewWaves()))
        assert rough.converged
        assert rough.n_steps <= smooth.n_steps + 15
        assert EMT().get_potential_energy(rough.atoms) == pytest.approx(smooth.energy, abs=1e-5)


class Smeared(EMT):
    """EMT whose energy is not the one that the forces belong to."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["energy"] = -self.results["free_energy"]


def test_steps_follow_the_free_energy_and_the_energy_is_reported():
    plain, smeared = (relax(metals()[0], calc) for calc in (EMT(), Smeared()))
    assert plain.converged
    assert smeared.n_steps == plain.n_steps
    assert smeared.energy == -plain.energy


@pytest.mark.parametrize("calc", [EMT(), MaiseCalculator("silicon")])
def test_constraints_are_refused(calc):
    atoms = bulk("Si" if isinstance(calc, MaiseCalculator) else "Cu")
    atoms.set_constraint([FixAtoms([0]), FixCom()])
    message = r"structure to relax has constraints \(FixAtoms, FixCom\), but .*remove them with atoms.set_constraint"
    with pytest.raises(StructureError, match=message):
        relax(atoms, calc)
    found = dict(relax_many([atoms, Atoms(atoms)], calc))
    assert isinstance(found[0], StructureError)


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
    with pytest.raises(RelaxationError, match=r"two atoms are 2\.\d+ Å apart, limit 2\.9 Å"):
        relax(Atoms("H", cell=[3, 3, 3], pbc=True), Balloon(1.0, 10.0), limits=limits)


def test_bad_input_is_refused():
    crystal = bulk("Cu")
    with pytest.raises(ValueError, match="fmax is 0; it must be a positive force"):
        relax(crystal, EMT(), fmax=0)
    with pytest.raises(ValueError, match="optimizer is 'LBFGS'; choose one of BFGS, FIRE"):
        relax(crystal, EMT(), optimizer="LBFGS")
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
