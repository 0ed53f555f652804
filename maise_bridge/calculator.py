"""MAISE potentials as an ASE calculator, evaluated natively."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
)

from maise_bridge.model_file import MaiseModel, read_model
from maise_bridge.neighbors import NeighborListCache
from maise_bridge.potential import MaisePotential

MODELS = Path(__file__).parent / "models"


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in MODELS.glob("*.model"))


def find_model(model: str | Path) -> Path:
    """Return the file of a shipped model's name, or the path itself if there is such a file.

    Raises
    ------
    CalculatorSetupError
        If there is neither; the message lists the shipped names.
    """
    for path in (MODELS / f"{model}.model", Path(model)):
        if path.is_file():
            return path
    names = ", ".join(shipped_models()) or "none"
    raise CalculatorSetupError(
        f"no MAISE model {str(model)!r}; pass the path of a model file or a shipped name ({names})"
    )


class MaiseCalculator(Calculator):
    """ASE calculator of a MAISE neural network.

    Besides ASE's properties, ``results["extrapolation"]`` (n_atoms,) says how far each atom lies outside the training
    data, see :class:`maise_bridge.potential.Evaluation`.

    Parameters
    ----------
    model : str, Path or MaiseModel
        Name of a shipped model, model file, or a model in memory.
    core_repulsion : bool or float
        MAISE's short-range repulsion: True for its default of 100 eV, a number (eV), or False.
    skin : float
        Neighbours are searched anew when atoms have moved by about half of it; Å.
    **kwargs
        Passed to ASE's Calculator.

    Raises
    ------
    CalculatorSetupError
        If the model is not found.
    ReadError
        If the model file is damaged.
    """

    name = "maise"
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012
    discard_results_on_any_change = True

    def __init__(
        self,
        model: str | Path | MaiseModel = "silicon",
        core_repulsion: bool | float = True,
        *,
        skin: float = 0.4,
        **kwargs: Any,
    ) -> None:
        self.model_path: Path | None = None
        if not isinstance(model, MaiseModel):
            self.model_path = find_model(model)
            label = str(model)
            model = read_model(self.model_path)
        else:
            label = f"model {model.unique_id} in memory"
        self.potential = MaisePotential(model, core_repulsion=core_repulsion)
        self._neighbors = NeighborListCache(self.potential.cutoff, skin)
        super().__init__(model=label, core_repulsion=core_repulsion, **kwargs)

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols that the model covers."""
        return self.potential.species

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse to change the model of a calculator; make a new one instead."""
        if self.parameters and set(kwargs) & {"model", "core_repulsion"}:
            raise CalculatorSetupError("model and core_repulsion are fixed; make a new MaiseCalculator")
        return super().set(**kwargs)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; called by ASE."""
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        self._check(self.atoms)
        evaluation = self.potential.evaluate([self.atoms], neighbors=self._neighbors.get([self.atoms]))[0]
        if not (np.isfinite(evaluation.energy) and np.isfinite(evaluation.forces).all()):
            formula = self.atoms.get_chemical_formula()
            energy = f"energy {evaluation.energy} eV"
            raise CalculationFailed(f"{formula} has an energy or force that is not finite ({energy}): atoms coincide?")
        self.results = {
            "energy": evaluation.energy,
            "free_energy": evaluation.energy,
            "energies": evaluation.energies,
            "forces": evaluation.forces,
            "extrapolation": evaluation.extrapolation,
        }
        if evaluation.stress is not None:
            self.results["stress"] = evaluation.stress
        elif "stress" in properties:
            raise PropertyNotImplementedError("a structure without three cell vectors has no stress")

    def _check(self, atoms: Atoms) -> None:
        missing = sorted(set(atoms.symbols) - set(self.species))
        if missing:
            covered = f"model {self.parameters['model']!r} covers {', '.join(self.species)}"
            remedy = "pass another model or another calculator"
            raise CalculatorSetupError(f"structure has {', '.join(missing)}; {covered}; {remedy}")
        if len(atoms) == 0 or not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            raise CalculationFailed(f"{len(atoms)} atoms: the structure is empty, or a position or cell is not finite")
