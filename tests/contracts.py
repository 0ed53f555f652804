"""Laws that every calculator of interatomic forces obeys, stated once and run on each of ours.

A law is a function of a factory of calculators, a structure and limits; it raises AssertionError with the numbers that
disagree. :func:`check_calculator` runs them all.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError, all_properties
from scipy.spatial.transform import Rotation

MakeCalculator = Callable[[], BaseCalculator]


@dataclass(frozen=True)
class Limits:
    """How well a calculator must obey; the defaults are for one that computes in double precision.

    Attributes
    ----------
    energy : float
        Between two energies that are one; eV.
    force : float
        Between force and finite difference, or two forces that are one; eV/Å.
    virial : float
        The same for volume times stress; eV.
    coordinates : int
        How many coordinates are displaced, all if there are fewer.
    copies : tuple of callables
        What must return an independent calculator that computes the same.
    """

    energy: float = 1e-9
    force: float = 1e-6
    virial: float = 1e-6
    coordinates: int = 24
    copies: tuple[Callable[[BaseCalculator], BaseCalculator], ...] = (
        copy.deepcopy,
        lambda calc: pickle.loads(pickle.dumps(calc)),
    )


def check_calculator(make_calc: MakeCalculator, atoms: Atoms, limits: Limits | None = None) -> None:
    """Check all laws.

    Parameters
    ----------
    make_calc : callable
        Returns a fresh calculator.
    atoms : Atoms
        Periodic crystal without symmetry and within the model's reach; not modified.
    limits : Limits, optional
        Tolerances.
    """
    for law in LAWS:
        law(make_calc, atoms, limits or Limits())


def forces_are_minus_the_gradient(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """F = -dE/dx, by central differences of fourth order."""
    calc, moved = make_calc(), _bare(atoms)
    forces = calc.get_forces(moved).copy()
    places = np.random.default_rng(0).permutation(3 * len(atoms))[: limits.coordinates]
    for atom, axis in (divmod(int(place), 3) for place in places):

        def energy(step: float, atom: int = atom, axis: int = axis) -> float:
            shifted = moved.copy()
            shifted.positions[atom, axis] += step
            return calc.get_potential_energy(shifted)

        _agree(forces[atom, axis], -_derivative(energy), limits.force, f"force {'xyz'[axis]} on atom {atom}, eV/Å")


def stress_is_the_strain_derivative(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """V sigma = dE/d(strain), in ASE's order xx yy zz yz xz xy, by central differences of fourth order."""
    calc, start = make_calc(), _bare(atoms)
    virial = calc.get_stress(start) * start.get_volume()
    for component, (row, column) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):

        def energy(step: float, row: int = row, column: int = column) -> float:
            strain = np.zeros((3, 3))
            strain[row, column] += step / 2
            strain[column, row] += step / 2
            strained = start.copy()
            strained.set_cell(start.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            return calc.get_potential_energy(strained)

        _agree(virial[component], _derivative(energy), limits.virial, f"virial {component}, eV")


def stress_is_positive_under_tension(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """A crystal whose energy falls as it grows (compressed) has a negative mean stress, in ASE's sign."""
    calc = make_calc()
    for scale in (0.9, 1.1):
        slope = _at_scale(atoms, 1.001 * scale, calc)[0] - _at_scale(atoms, 0.999 * scale, calc)[0]
        mean = float(_at_scale(atoms, scale, calc)[1][:3].mean())
        if abs(slope) > 1e3 * limits.energy and np.sign(mean) != np.sign(slope):
            raise AssertionError(f"at {scale:g} of the lengths dE/dV has the sign of {slope}, the stress is {mean}")


def energy_is_extensive(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """E(2 x cell) = 2 E; forces repeat, the stress stays."""
    energy, forces, virial = _results(make_calc(), atoms)
    for repeats in ((2, 1, 1), (1, 1, 2)):
        twice = _results(make_calc(), _bare(atoms).repeat(repeats))
        _agree(twice[0], 2 * energy, limits.energy, f"energy of the cell repeated {repeats}, eV")
        _agree(twice[1], np.concatenate([forces, forces]), limits.force, "forces of the repeated cell, eV/Å")
        _agree(twice[2], 2 * virial, 2 * limits.virial, "virial of the repeated cell, eV")


def rotations_turn_forces_and_stress(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """E(R x) = E(x), F(R x) = R F(x), sigma(R x) = R sigma(x) R^T."""
    energy, forces, virial = _results(make_calc(), atoms)
    turn = Rotation.from_euler("zyx", [0.7, -0.4, 1.1]).as_matrix()
    turned = _bare(atoms)
    turned.set_cell(turned.cell.array @ turn.T)
    turned.positions = turned.positions @ turn.T
    new = _results(make_calc(), turned)
    _agree(new[0], energy, limits.energy, "energy of the rotated crystal, eV")
    _agree(new[1], forces @ turn.T, limits.force, "forces of the rotated crystal, eV/Å")
    _agree(_matrix(new[2]), turn @ _matrix(virial) @ turn.T, limits.virial, "virial of the rotated crystal, eV")


def permutations_only_reorder(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """The order of the atoms is the order of the forces and nothing else."""
    order = np.roll(np.arange(len(atoms)), 1)  # moves every atom
    _same(_results(make_calc(), atoms), _results(make_calc(), _bare(atoms)[order]), limits, "permuted", order)


def translations_change_nothing(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """A crystal has no place."""
    moved = _bare(atoms)
    moved.positions += [0.37, -1.29, 2.11]
    _same(_results(make_calc(), atoms), _results(make_calc(), moved), limits, "translated")


def lattice_vectors_change_nothing(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """Atoms outside of the cell are those inside."""
    moved = _bare(atoms)
    moved.positions += np.random.default_rng(2).integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
    _same(_results(make_calc(), atoms), _results(make_calc(), moved), limits, "unwrapped")
    moved.wrap()
    _same(_results(make_calc(), atoms), _results(make_calc(), moved), limits, "wrapped")


def results_follow_the_atoms(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """After any change, a used calculator says what a fresh one does, in whatever order it is asked."""
    changed = [_bare(atoms) for _ in range(3)]
    changed[0].positions[-1] += [0.02, 0.03, -0.01]
    changed[1].set_cell(1.02 * atoms.cell.array, scale_atoms=True)
    changed[2] = changed[2].repeat((1, 2, 1))
    if len(set(atoms.numbers)) > 1:
        changed.append(_bare(atoms))
        changed[-1].numbers = np.roll(atoms.numbers, 1)
    calc, living = make_calc(), _bare(atoms)
    for after in (*changed, atoms):
        _results(calc, living)  # fills the caches
        _same(_results(make_calc(), after), _results(calc, after), limits, "changed")
    living.calc = calc
    living.get_forces()
    living.positions[0] += [0.01, 0.0, 0.02]
    expected = _results(make_calc(), living)
    _agree(living.get_stress() * living.get_volume(), expected[2], limits.virial, "virial after a move, eV")
    _agree(living.get_forces(), expected[1], limits.force, "forces after a move, eV/Å")
    _agree(living.get_potential_energy(), expected[0], limits.energy, "energy after a move, eV")


def atoms_are_left_alone(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """A calculation changes neither positions nor cell nor anything else of the structure."""
    given = _bare(atoms)
    given.positions[0] += 2 * atoms.cell.array[0]  # outside of the cell, where a calculator might wrap it
    given.set_tags(range(len(given)))
    given.info["note"] = "mine"
    before = given.copy()
    _results(make_calc(), given)
    if given.info != before.info or set(given.arrays) != set(before.arrays) or (given.pbc != before.pbc).any():
        raise AssertionError("the calculation changed info, arrays or boundary conditions of the structure")
    for name, array in before.arrays.items():
        _agree(given.arrays[name], array, 0.0, f"{name} after a calculation")
    _agree(given.cell.array, before.cell.array, 0.0, "cell after a calculation, Å")


def calculations_repeat(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """The same question has the same answer bit for bit, and an answer that is written over harms no other."""
    calc = make_calc()
    first = _results(calc, atoms)
    calc.get_forces(atoms)[:] = 0.0
    calc.get_stress(atoms)[:] = 0.0
    for again in (calc, make_calc()):
        for name, old, new in zip(("energy", "forces", "virial"), first, _results(again, atoms), strict=True):
            _agree(new, old, 0.0, f"{name} calculated again")


def copies_are_independent(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """A copy computes the same, and what it computes does not touch the original."""
    other = _bare(atoms)
    other.positions[0] += [0.05, 0.0, 0.0]
    for make_copy in limits.copies:
        calc = make_calc()
        before = _results(calc, atoms)
        held = {name: copy.deepcopy(value) for name, value in calc.results.items()}
        twin = make_copy(calc)
        _same(_results(make_calc(), other), _results(twin, other), limits, "copied calculator's")
        if set(held) != set(calc.results) or not all(np.array_equal(held[name], calc.results[name]) for name in held):
            raise AssertionError("a calculation of the copy changed the results of the original")
        _same(before, _results(twin, atoms), limits, "copied calculator's")


def unknown_properties_are_refused(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """What a calculator does not implement raises ASE's PropertyNotImplementedError."""
    calc = make_calc()
    missing = [name for name in all_properties if name not in calc.implemented_properties]
    for name in missing:
        try:
            value = calc.get_property(name, _bare(atoms))
        except PropertyNotImplementedError:
            continue
        raise AssertionError(f"{name} is not among implemented_properties, but get_property returns {value}")


def parts_add_up(make_calc: MakeCalculator, atoms: Atoms, limits: Limits) -> None:
    """Forces have no resultant, shares of atoms add up to the energy, which is also the force-consistent one."""
    calc, given = make_calc(), _bare(atoms)
    given.calc = calc
    energy = given.get_potential_energy()
    _agree(given.get_forces().sum(axis=0), np.zeros(3), len(atoms) * limits.force, "sum of the forces, eV/Å")
    if "energies" in calc.implemented_properties:
        _agree(given.get_potential_energies().sum(), energy, limits.energy, "sum of the atoms' energies, eV")
    _agree(given.get_potential_energy(force_consistent=True), energy, limits.energy, "force-consistent energy, eV")


Law = Callable[[MakeCalculator, Atoms, Limits], None]
LAWS: Sequence[Law] = (
    forces_are_minus_the_gradient,
    stress_is_the_strain_derivative,
    stress_is_positive_under_tension,
    energy_is_extensive,
    rotations_turn_forces_and_stress,
    permutations_only_reorder,
    translations_change_nothing,
    lattice_vectors_change_nothing,
    results_follow_the_atoms,
    atoms_are_left_alone,
    calculations_repeat,
    copies_are_independent,
    unknown_properties_are_refused,
    parts_add_up,
)


def _bare(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _results(calc: BaseCalculator, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces (eV/Å) and virial (eV)."""
    virial = calc.get_stress(atoms) * atoms.get_volume()
    return calc.get_potential_energy(atoms), calc.get_forces(atoms).copy(), virial


def _at_scale(atoms: Atoms, scale: float, calc: BaseCalculator) -> tuple[float, np.ndarray]:
    scaled = _bare(atoms)
    scaled.set_cell(scale * atoms.cell.array, scale_atoms=True)
    return calc.get_potential_energy(scaled), calc.get_stress(scaled)


def _derivative(function: Callable[[float], float], step: float = 3e-4) -> float:
    """Central difference of fourth order: errors of step^4 f^(5) / 30, and of 1e-16 f / step by rounding."""
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


def _matrix(voigt: np.ndarray) -> np.ndarray:
    return voigt[np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])]


def _same(
    expected: tuple[float, np.ndarray, np.ndarray],
    found: tuple[float, np.ndarray, np.ndarray],
    limits: Limits,
    what: str,
    order: np.ndarray | slice = slice(None),
) -> None:
    _agree(found[0], expected[0], limits.energy, f"{what} energy, eV")
    _agree(found[1], expected[1][order], limits.force, f"{what} forces, eV/Å")
    _agree(found[2], expected[2], limits.virial, f"{what} virial, eV")


def _agree(found: object, expected: object, limit: float, what: str) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        raise AssertionError(f"{what}: shape {found.shape}, expected {expected.shape}")
    error = np.abs(found - expected).max(initial=0.0)
    if not error <= limit:
        raise AssertionError(f"{what}: found {found}, expected {expected}, {error:.3g} apart, limit {limit:g}")
