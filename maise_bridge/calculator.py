"""MAISE potentials as an ASE calculator, evaluated natively."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
)

from maise_bridge.gupta_file import GuptaModel
from maise_bridge.model_file import MaiseModel, read_model

if TYPE_CHECKING:  # compiled code is loaded where a potential is made: ASE loads this module to know the calculator
    from maise_bridge.batch_relax import Relaxed
    from maise_bridge.gupta import GuptaPotential
    from maise_bridge.neighbors import NeighborList
    from maise_bridge.potential import MaisePotential

logger = logging.getLogger(__name__)
EXTRAPOLATION_TOLERANCE = 0.01  # of an input's range; less is not worth a warning
SHORTEST_DISTANCE = 1e-6  # Å; closer atoms coincide
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
    """ASE calculator of a MAISE model, neural network or Gupta.

    Besides ASE's properties, ``results["extrapolation"]`` (n_atoms,) says how far each atom lies outside the training
    data, see :class:`maise_bridge.potential.Evaluation`. The first structure of a calculator with an atom outside of it
    is logged as a warning. There is a stress whenever the cell spans space.

    Parameters
    ----------
    model : str, Path, MaiseModel or GuptaModel
        Name of a shipped model, model file, or a model in memory.
    core_repulsion : bool or float
        MAISE's short-range repulsion of networks: True for its default of 100 eV, a number (eV), or False.
    skin : float
        Neighbours are searched anew when atoms have moved by about half of it; Å.
    **kwargs
        Passed to ASE's Calculator: `restart`, `label`, `atoms`, `directory`.

    Raises
    ------
    CalculatorSetupError
        If the model is not found, an argument is unknown, or a Gupta model is to have a core repulsion.
    ReadError
        If the model file is damaged.
    """

    name = "maise"
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012
    discard_results_on_any_change = True

    def __init__(
        self,
        model: str | Path | MaiseModel | GuptaModel = "silicon",
        core_repulsion: bool | float = True,
        *,
        skin: float = 0.4,
        **kwargs: Any,
    ) -> None:
        from maise_bridge.neighbors import NeighborListCache

        self.model_path: Path | None = None
        if isinstance(model, MaiseModel | GuptaModel):
            label = f"model {model.unique_id} in memory"
        else:
            self.model_path = find_model(model)
            label = str(model)
            model = read_model(self.model_path)
        self.potential = _potential(model, core_repulsion, label)
        self._neighbors = NeighborListCache(self.potential.cutoff, skin)
        self._warned = False
        super().__init__(model=label, core_repulsion=core_repulsion, **kwargs)

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols that the model covers."""
        return self.potential.species

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Refuse to change the model of a calculator; make a new one instead."""
        if self.parameters and set(kwargs) & {"model", "core_repulsion"}:
            raise CalculatorSetupError("model and core_repulsion are fixed; make a new MaiseCalculator")
        unknown = sorted(set(kwargs) - {"model", "core_repulsion"})
        if unknown:
            raise CalculatorSetupError(f"MaiseCalculator has no argument {unknown[0]!r}; see its documentation")
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
        self.results = {}
        self.check(self.atoms)
        try:
            neighbors = self._neighbors.get([self.atoms])
        except ValueError as error:
            raise CalculationFailed(str(error)) from error
        pair, distance = _closest(self.atoms, neighbors)
        if distance < SHORTEST_DISTANCE:
            raise CalculationFailed(f"atoms {pair} coincide, their distance is {distance:.3g} Å")
        evaluation = self.potential.evaluate([self.atoms], neighbors=neighbors)[0]
        if not (np.isfinite(evaluation.energy) and np.isfinite(evaluation.forces).all()):
            raise CalculationFailed(
                f"{self.atoms.get_chemical_formula()} has an energy or force that is not finite (energy "
                f"{evaluation.energy} eV); the closest atoms are {pair}, {distance:.3g} Å apart"
            )
        self._warn(self.atoms, evaluation.extrapolation)
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

    def batch_relax(self, structures: Sequence[Atoms], **options: Any) -> Iterator[Relaxed]:
        """Relax many crystals at once, with the options and results of :func:`maise_bridge.batch_relax.batch_relax`."""
        from maise_bridge.batch_relax import batch_relax

        for atoms in structures:
            self.check(atoms)
        return batch_relax(structures, self.potential, **options)

    def check(self, atoms: Atoms, *, name: str = "") -> None:
        """Refuse a structure that the model cannot describe, before anything is computed.

        Parameters
        ----------
        atoms : Atoms
            Not modified.
        name : str
            Begins the messages.

        Raises
        ------
        CalculatorSetupError
            If a species is not covered, or the model is one of clusters and the structure periodic.
        CalculationFailed
            If there is no atom, or a position or the cell is not finite.
        """
        try:
            self._check(atoms)
        except (CalculationFailed, CalculatorSetupError) as error:
            if not name:
                raise
            raise type(error)(f"{name}: {error}") from error

    def _check(self, atoms: Atoms) -> None:
        from maise_bridge.gupta import check_periodicity

        missing = sorted(set(atoms.symbols) - set(self.species))
        if missing:
            covered = f"model {self.parameters['model']!r} covers {', '.join(self.species)}"
            remedy = "pass another model or another calculator"
            raise CalculatorSetupError(f"structure has {', '.join(missing)}; {covered}; {remedy}")
        if len(atoms) == 0:
            raise CalculationFailed("the structure has no atoms")
        wrong = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        if len(wrong):
            place = f"atom {wrong[0]} ({atoms.symbols[wrong[0]]})"
            raise CalculationFailed(f"position of {place} is not finite: {atoms.positions[wrong[0]].tolist()}")
        if not np.isfinite(atoms.cell.array).all():
            raise CalculationFailed(f"cell is not finite: {atoms.cell.array.tolist()}")
        try:
            check_periodicity([atoms], self.potential.cutoff)
        except ValueError as error:
            raise CalculatorSetupError(f"model {self.parameters['model']!r}: {error}") from error

    def _warn(self, atoms: Atoms, extrapolation: np.ndarray) -> None:
        """Log once that atoms lie outside the training data."""
        n_outside = int((extrapolation > EXTRAPOLATION_TOLERANCE).sum())
        if n_outside == 0 or self._warned:
            return
        self._warned = True
        worst = int(extrapolation.argmax())
        logger.warning(
            "%s: %d of %d atoms lie outside the training data of model %r; worst is atom %d (%s), by %.3g of the range "
            "of an input; further cases are only in results['extrapolation']",
            atoms.get_chemical_formula(),
            n_outside,
            len(atoms),
            self.parameters["model"],
            worst,
            atoms.symbols[worst],
            extrapolation[worst],
        )


def _potential(
    model: MaiseModel | GuptaModel, core_repulsion: bool | float, label: str
) -> MaisePotential | GuptaPotential:
    from maise_bridge.gupta import GuptaPotential
    from maise_bridge.potential import MaisePotential

    if isinstance(model, MaiseModel):
        return MaisePotential(model, core_repulsion=core_repulsion)
    if not isinstance(core_repulsion, bool):
        raise CalculatorSetupError(
            f"core_repulsion is {core_repulsion}; {label!r} is a Gupta model, which has none; leave the argument out"
        )
    return GuptaPotential(model)


def _closest(atoms: Atoms, neighbors: NeighborList) -> tuple[str, float]:
    """Names of the two closest atoms, and their distance in Å."""
    squares = neighbors.measured[1]
    if len(squares) == 0:
        return "none (no atom has a neighbour)", np.inf
    k = int(squares.argmin())
    i, j = sorted((neighbors.topology.centre[k], neighbors.topology.neighbour[k]))
    return f"{i} ({atoms.symbols[i]}) and {j} ({atoms.symbols[j]})", float(np.sqrt(squares[k]))
