"""MAISE potentials: evaluated natively, or by the `maise` program."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ase.calculators.calculator import BadConfiguration, BaseCalculator, CalculatorSetupError

from ase_hvae.calculators.preflight import missing_command
from ase_hvae.calculators.record import CalculatorRecord

if TYPE_CHECKING:
    from maise_bridge import MaiseCalculator


def open_native(species: Sequence[str], model: str) -> tuple[MaiseCalculator, CalculatorRecord]:
    """Native evaluator of a MAISE model.

    Raises
    ------
    CalculatorSetupError, ReadError
        If the model is missing, damaged, or does not cover the species.
    """
    from maise_bridge import MaiseCalculator

    calc = MaiseCalculator(model=model)
    assert calc.model_path is not None
    _check_covered(model, calc.species, species)
    record = CalculatorRecord(
        "maise", model=model, sha256=_hash_file(calc.model_path), version=calc.potential.model.unique_id
    )
    return calc, record


def open_executable(species: Sequence[str], model: str, directory: Path) -> tuple[BaseCalculator, CalculatorRecord]:
    """The `maise` program with a model; its command comes from section ``[maise]`` of ASE's configuration.

    The program is started once, without a job, to see that it is MAISE and which version.

    Raises
    ------
    CalculatorSetupError, ReadError
        If the program cannot start or is not MAISE, or the model is missing, damaged, or does not cover the species.
    """
    from maise_bridge import Maise, read_model
    from maise_bridge.calculator import find_model

    path = find_model(model)
    _check_covered(model, tuple(read_model(path).species), species)
    try:
        calc = Maise(model=path.resolve(), directory=directory)
    except BadConfiguration as error:
        raise CalculatorSetupError(f"section [maise] of ASE's configuration: {error}") from error
    missing = missing_command(calc.profile.command)
    if missing is not None:
        raise CalculatorSetupError(f"{missing}; set command in section [maise] of ASE's configuration")
    record = CalculatorRecord("maise-executable", model=model, sha256=_hash_file(path), version=calc.profile.version())
    return calc, record


def outside_training(extrapolation: float) -> bool:
    """Whether an excursion from the training range of a MAISE model is more than the model's tolerance."""
    from maise_bridge.calculator import EXTRAPOLATION_TOLERANCE

    return extrapolation > EXTRAPOLATION_TOLERANCE


def _check_covered(model: str, covered: Sequence[str], species: Sequence[str]) -> None:
    missing = [symbol for symbol in species if symbol not in covered]
    if missing:
        raise CalculatorSetupError(
            f"model {model!r} covers {', '.join(covered)}, not {', '.join(missing)}; pass another model"
        )


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
