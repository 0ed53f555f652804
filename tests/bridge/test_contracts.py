"""The laws of tests/contracts.py, on our calculators and on ASE's EMT; and broken calculators that each law catches."""

import copy
import importlib.util
import sys
from contextlib import chdir, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from maise_bridge import Maise, MaiseCalculator, MaiseProfile

TESTS = Path(__file__).parents[1]
DATA = TESTS / "data" / "bridge"


def load(path):
    """Module of a file that lies in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


contracts = load(TESTS / "contracts.py")
standin = load(TESTS / "bridge" / "standin_maise.py")


class StandinProfile(MaiseProfile):
    """Starts no process: the stand-in computes in this one, between the same files."""

    def _call(self, directory, outputfile, errorfile):
        (directory / errorfile).touch()
        with open(directory / outputfile, "w") as out, chdir(directory), redirect_stdout(out):
            return standin.compute()


def crystal(symbol, structure, a, seed=4, atoms=slice(None)):
    """Rattled and sheared: no symmetry is left."""
    crystal = bulk(symbol, structure, a=a, cubic=True)[atoms]
    strain = [[0.01, 0.02, 0.0], [0.0, -0.015, 0.01], [0.03, 0.0, 0.005]]
    crystal.set_cell(crystal.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    crystal.rattle(0.08, seed=seed)
    return crystal


FILES = contracts.Limits(coordinates=4, copies=(copy.deepcopy,))
ROUNDED = contracts.Limits(force=1.6e-6, coordinates=4, copies=(copy.deepcopy,))  # forces of six decimals


def executable(model, **options):
    """Factory of factories: calculators in fresh folders below one."""

    def in_folder(folder):
        numbers = iter(range(10**6))
        return lambda: Maise(DATA / model, directory=folder / str(next(numbers)), shortest_distance=0, **options)

    return in_folder


def native(model, **options):
    return lambda folder: lambda: MaiseCalculator(model, **options)


silicon, alloy = crystal("Si", "diamond", 5.4), crystal("MgSi", "zincblende", 5.9)
copper = crystal("Cu", "fcc", 3.6)
gold = crystal("CuAu", "rocksalt", 5.2, seed=5)  # none of its distances is where the second derivative jumps
small = crystal("MgSi", "zincblende", 5.9, atoms=[1, 0, 3])
CALCULATORS = [
    pytest.param(native("silicon"), silicon, contracts.Limits(), id="native-silicon"),
    pytest.param(native(DATA / "mgsi.model"), alloy, contracts.Limits(), id="native-alloy"),
    pytest.param(native("silicon", core_repulsion=False), silicon, contracts.Limits(), id="native-no-core"),
    pytest.param(native(DATA / "cuau_gupta.model"), gold, contracts.Limits(), id="native-gupta"),
    pytest.param(lambda folder: EMT, copper, contracts.Limits(copies=(copy.deepcopy,)), id="emt"),
    pytest.param(executable("mgsi.model", profile=StandinProfile("x"), exact_forces=True), small, FILES, id="standin"),
    pytest.param(executable("mgsi.model", profile=StandinProfile("x")), small, ROUNDED, id="standin-rounded"),
    pytest.param(executable("mgsi.model", exact_forces=True), small, FILES, id="program", marks=pytest.mark.maise),
    pytest.param(executable("si.model"), silicon, ROUNDED, id="program-rounded", marks=pytest.mark.maise),
]


@pytest.mark.parametrize(("prepare", "atoms", "limits"), CALCULATORS)
@pytest.mark.parametrize("law", contracts.LAWS, ids=lambda law: law.__name__)
def test_calculators_obey(law, prepare, atoms, limits, tmp_path):
    law(prepare(tmp_path), atoms, limits)


@pytest.mark.parametrize(("make", "atoms"), [(MaiseCalculator, bulk("Si", a=5.47)), (EMT, bulk("Cu", a=3.6))])
def test_compressed_crystals_push_with_negative_stress(make, atoms):
    for scale, sign in ((0.95, -1), (1.05, 1)):
        scaled = atoms.copy()
        scaled.set_cell(scale * atoms.cell.array, scale_atoms=True)
        stress = make().get_stress(scaled)
        assert (np.sign(stress[:3]) == sign).all()


class Broken(EMT):
    """EMT with one fault, in `spoil` or by another method."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["stress"] = self.results["stress"].copy()
        self.spoil(self.results, self.atoms)

    def spoil(self, results, atoms):
        pass


class ForceOff(Broken):
    def spoil(self, results, atoms):
        results["forces"][1, 2] += 1e-4


class StressOfOtherSign(Broken):
    def spoil(self, results, atoms):
        results["stress"] *= -1


class StressInOtherOrder(Broken):
    def spoil(self, results, atoms):
        results["stress"] = results["stress"][[0, 1, 2, 5, 3, 4]]


class StressTimesVolume(Broken):
    def spoil(self, results, atoms):
        results["stress"] *= atoms.get_volume()


class EnergyPerAtom(Broken):
    def spoil(self, results, atoms):
        results["energy"] /= len(atoms)


class ShiftPerCell(Broken):
    def spoil(self, results, atoms):
        results["energy"] += 1e-6


class EnergyOfTheAxes(Broken):
    def spoil(self, results, atoms):
        results["energy"] += 1e-6 * atoms.cell[0, 0]


class ForcesInTheCellsFrame(Broken):
    def spoil(self, results, atoms):
        results["forces"] = results["forces"] @ np.linalg.qr(atoms.cell.array)[0]


class FirstAtomIsSpecial(Broken):
    def spoil(self, results, atoms):
        results["energy"] += 1e-6 * results["energies"][0]


class ForcesInSortedOrder(Broken):
    def spoil(self, results, atoms):
        results["forces"] = results["forces"][np.argsort(atoms.positions[:, 0])]


class ExternalField(Broken):
    def spoil(self, results, atoms):
        results["energy"] += 1e-6 * np.sin(atoms.positions[:, 2]).sum()


class PlacesAreTakenLiterally(Broken):
    def spoil(self, results, atoms):
        results["energy"] += 1e-6 * np.floor(atoms.get_scaled_positions(wrap=False)).sum() ** 2


class StaleCache(Broken):
    def check_state(self, atoms, tol=1e-15):
        return [] if self.results else super().check_state(atoms, tol)


class StaleStress(Broken):
    first = None

    def spoil(self, results, atoms):
        self.first = results["stress"] if self.first is None else self.first
        results["stress"] = self.first


class WrapsTheAtoms(Broken):
    def get_property(self, name, atoms=None, allow_calculation=True):
        atoms.wrap()
        return super().get_property(name, atoms, allow_calculation)


class LeavesANote(Broken):
    def get_property(self, name, atoms=None, allow_calculation=True):
        atoms.info["calculated"] = True
        return super().get_property(name, atoms, allow_calculation)


class Noise(Broken):
    generator = np.random.default_rng(0)

    def spoil(self, results, atoms):
        results["energy"] += 1e-12 * self.generator.normal()


class HandsOutItsArrays(Broken):
    def get_property(self, name, atoms=None, allow_calculation=True):
        super().get_property(name, atoms, allow_calculation)
        return self.results[name]


class CopiesAreItself(Broken):
    def __deepcopy__(self, memo):
        return self


class InventsCharges(Broken):
    def get_property(self, name, atoms=None, allow_calculation=True):
        return 0.0 if name == "charges" else super().get_property(name, atoms, allow_calculation)


class SharesDoNotAddUp(Broken):
    def spoil(self, results, atoms):
        results["energies"] = results["energies"] + 1e-9


class ResultantForce(Broken):
    def spoil(self, results, atoms):
        results["forces"] += 1e-5


FAULTS = [
    (ForceOff, "forces_are_minus_the_gradient", "force z on atom 1"),
    (ForcesInSortedOrder, "forces_are_minus_the_gradient", "force"),
    (StressOfOtherSign, "stress_is_the_strain_derivative", "virial 0"),
    (StressInOtherOrder, "stress_is_the_strain_derivative", "virial 3"),
    (StressTimesVolume, "stress_is_the_strain_derivative", "virial 0"),
    (StressOfOtherSign, "stress_is_positive_under_tension", "dE/dV has the sign of"),
    (EnergyPerAtom, "energy_is_extensive", "energy of the cell repeated"),
    (ShiftPerCell, "energy_is_extensive", "energy of the cell repeated"),
    (StressTimesVolume, "energy_is_extensive", "virial of the repeated cell"),
    (EnergyOfTheAxes, "rotations_turn_forces_and_stress", "energy of the rotated crystal"),
    (ForcesInTheCellsFrame, "rotations_turn_forces_and_stress", "forces of the rotated crystal"),
    (StressInOtherOrder, "rotations_turn_forces_and_stress", "virial of the rotated crystal"),
    (FirstAtomIsSpecial, "permutations_only_reorder", "permuted energy"),
    (ForcesInSortedOrder, "permutations_only_reorder", "permuted forces"),
    (ExternalField, "translations_change_nothing", "translated energy"),
    (PlacesAreTakenLiterally, "lattice_vectors_change_nothing", "unwrapped energy"),
    (StaleCache, "results_follow_the_atoms", "changed energy"),
    (StaleStress, "results_follow_the_atoms", "changed virial"),
    (WrapsTheAtoms, "atoms_are_left_alone", "positions after a calculation"),
    (LeavesANote, "atoms_are_left_alone", "changed info"),
    (Noise, "calculations_repeat", "energy calculated again"),
    (HandsOutItsArrays, "calculations_repeat", "forces calculated again"),
    (CopiesAreItself, "copies_are_independent", "changed the results of the original"),
    (InventsCharges, "unknown_properties_are_refused", "charges is not among"),
    (SharesDoNotAddUp, "parts_add_up", "sum of the atoms' energies"),
    (ResultantForce, "parts_add_up", "sum of the forces"),
]


@pytest.mark.parametrize(("broken", "law", "message"), FAULTS)
def test_broken_calculators_are_caught(broken, law, message):
    limits = contracts.Limits(copies=(copy.deepcopy,))
    getattr(contracts, law)(Broken, copper, limits)
    with pytest.raises(AssertionError, match=message):
        getattr(contracts, law)(broken, copper, limits)
    with pytest.raises(AssertionError):
        contracts.check_calculator(broken, copper, limits)


def test_every_law_has_a_fault_that_it_catches():
    assert {law for _, law, _ in FAULTS} == {law.__name__ for law in contracts.LAWS}
