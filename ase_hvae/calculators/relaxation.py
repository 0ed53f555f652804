"""Relaxation through any calculator by the optimizers of maise_bridge, many crystals at once where it can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculationFailed, CalculatorError

from maise_bridge.bounds import Bounds, no_constraints

if TYPE_CHECKING:  # compiled code is loaded where something is relaxed
    from maise_bridge.batch_relax import Relaxed
    from maise_bridge.neighbors import NeighborList

__all__ = ["Bounds", "CalculatorPotential", "no_constraints", "relaxations", "relaxes_together"]


@dataclass(frozen=True, eq=False)
class CalculatorEvaluation:
    """What a calculator says about one crystal.

    Attributes
    ----------
    energy : float
        eV.
    free_energy : float
        Energy whose derivatives the forces are; eV. That of electrons with a width, `energy` where there is no other.
    forces : np.ndarray
        eV/Å, ``(n_atoms, 3)``.
    virial : np.ndarray
        Stress times volume, Voigt order; eV, ``(6,)``.
    stress : np.ndarray
        eV/Å³, Voigt order, tension positive, ``(6,)``.
    extrapolation : np.ndarray or None
        How far each atom lies outside the training data, where the calculator says it, ``(n_atoms,)``.
    """

    energy: float
    free_energy: float
    forces: np.ndarray
    virial: np.ndarray
    stress: np.ndarray
    extrapolation: np.ndarray | None


class CalculatorPotential:
    """An ASE calculator in the place of a potential of :func:`maise_bridge.batch_relax.batch_relax`.

    Parameters
    ----------
    calc : Calculator
        With energy, forces and stress.
    cutoff : float
        Up to this distance the relaxation sees how close two atoms are; Å.
    """

    def __init__(self, calc: BaseCalculator, cutoff: float) -> None:
        self.calc = calc
        self.cutoff = cutoff

    def evaluate(
        self, structures: Sequence[Atoms], *, neighbors: NeighborList | None = None
    ) -> list[CalculatorEvaluation]:
        """Energies, forces and stresses of some crystals, one calculation each.

        Raises
        ------
        CalculationFailed
            If one of them is not finite.
        CalculatorError
            If the calculator raises it.
        """
        return [self._evaluate(atoms) for atoms in structures]

    def _evaluate(self, atoms: Atoms) -> CalculatorEvaluation:
        work = atoms.copy()
        work.calc = self.calc
        energy = float(work.get_potential_energy())
        forces = np.array(work.get_forces())
        stress = np.array(work.get_stress(voigt=True))
        results = getattr(self.calc, "results", {})  # asking for more might start another calculation
        free_energy = float(results.get("free_energy", energy))
        for name, value in (("energy", energy), ("free energy", free_energy), ("forces", forces), ("stress", stress)):
            if not np.isfinite(value).all():
                raise CalculationFailed(f"calculator returned a non-finite {name} for {atoms.symbols}")
        virial = stress * atoms.get_volume()
        return CalculatorEvaluation(energy, free_energy, forces, virial, stress, results.get("extrapolation"))


def relaxes_together(calc: BaseCalculator) -> bool:
    """Whether a calculator takes all crystals of :func:`relaxations` at once, as the native MAISE potential does."""
    return hasattr(calc, "batch_relax")


def relaxations(
    structures: Sequence[Atoms], calc: BaseCalculator, *, bounds: Bounds, **options: Any
) -> Iterator[tuple[int, Relaxed | CalculatorError]]:
    """Relax crystals independently of one another.

    Parameters
    ----------
    structures : sequence of Atoms
        Not modified.
    calc : Calculator
        Native MAISE potential, or any ASE calculator with energy, forces and stress.
    bounds : Bounds
        Limits on volume, cell lengths and distances.
    **options
        `fmax`, `max_steps`, `optimizer` and `scalar_pressure` of :func:`maise_bridge.batch_relax.batch_relax`.

    Yields
    ------
    tuple of int and Relaxed or CalculatorError
        Place in the sequence and how the relaxation ended, as they are ready.
    """
    together: Any = calc
    if relaxes_together(calc):
        yield from ((end.index, end) for end in together.batch_relax(structures, bounds=bounds, **options))
        return
    from maise_bridge.batch_relax import batch_relax

    potential = CalculatorPotential(calc, cutoff=max(bounds.min_distance, 0.0))
    for number, atoms in enumerate(structures):
        try:
            (end,) = batch_relax([atoms], potential, bounds=bounds, **options)
        except CalculatorError as error:
            yield number, error
        else:
            yield number, end
