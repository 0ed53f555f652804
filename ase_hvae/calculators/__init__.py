"""The choice of a calculator, once per run: MAISE, VASP, Quantum ESPRESSO, GPAW or any factory; the only door to them.

Each program has a module of its own, loaded when it is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ase.calculators.calculator import BaseCalculator, CalculatorSetupError, ReadError

from ase_hvae.calculators.record import CalculatorRecord
from ase_hvae.calculators.watched import NEEDED, WatchedCalculator

__all__ = ["NAMES", "CalculatorRecord", "WatchedCalculator", "get_calculator", "outside_training"]

logger = logging.getLogger(__name__)

NAMES = ("maise", "maise-executable", "vasp", "espresso", "gpaw")
Opened = tuple[BaseCalculator, CalculatorRecord]


def get_calculator(
    names: str = "maise",
    *,
    species: Sequence[str],
    model: str = "silicon",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    directory: str | Path = ".",
) -> Opened:
    """First calculator of a list that can treat the given elements.

    Parameters
    ----------
    names : str
        Comma-separated, in order of preference: ``maise`` (native), ``maise-executable``, ``vasp``, ``espresso``,
        ``gpaw`` or ``module:factory``; a factory is called without arguments and returns an ASE calculator.
    species : sequence of str
        Chemical symbols that must be covered.
    model : str
        MAISE model: a shipped name or a model file.
    settings : mapping, optional
        Options of ``vasp``, ``espresso`` and ``gpaw`` by name, as the tables of a configuration hold them.
    directory : str or Path
        Where programs run, in a folder named after program and process; made with the first calculation.

    Returns
    -------
    calculator, CalculatorRecord
        Failures of calculators other than MAISE's come as `CalculationFailed`, whatever the program did.

    Raises
    ------
    CalculatorSetupError
        If none of them can; the message holds the reason of each.
    """
    wanted = tuple(sorted(set(species)))
    refusals: list[str] = []
    for name in (part.strip() for part in names.split(",")):
        folder = Path(directory).resolve() / f"{name}_{os.getpid()}"
        try:
            calc, record = _open(name, wanted, model, (settings or {}).get(name, {}), folder)
        except (CalculatorSetupError, ReadError) as error:
            refusals.append(f"{name or 'empty name'}: {error}")
            continue
        for refusal in refusals:
            logger.warning("calculator refused, the next one is used: %s", refusal)
        return calc, dataclasses.replace(record, species=wanted, refused=tuple(refusals))
    raise CalculatorSetupError("no calculator for " + ", ".join(wanted) + ": " + "; ".join(refusals))


def outside_training(extrapolation: float) -> bool:
    """Whether a candidate's `extrapolation`, a share of the range of an input, is beyond the potential's tolerance."""
    from ase_hvae.calculators import maise

    return maise.outside_training(extrapolation)


def _open(name: str, species: tuple[str, ...], model: str, options: Mapping[str, Any], directory: Path) -> Opened:
    if name == "maise":
        from ase_hvae.calculators.maise import open_native

        return open_native(species, model)
    if name == "maise-executable":
        from ase_hvae.calculators.maise import open_executable

        return open_executable(species, model, directory)
    if name == "vasp":
        from ase_hvae.calculators.vasp import open_vasp

        return open_vasp(species, options, directory)
    if name == "espresso":
        from ase_hvae.calculators.espresso import open_espresso

        return open_espresso(species, options, directory)
    if name == "gpaw":
        from ase_hvae.calculators.gpaw import open_gpaw

        return open_gpaw(species, options, directory)
    if ":" in name:
        return _factory(name)
    raise CalculatorSetupError(f"unknown calculator; use {', '.join(NAMES)} or module:factory")


def _factory(name: str) -> Opened:
    module, _, attribute = name.partition(":")
    try:
        factory: Callable[[], Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CalculatorSetupError(f"cannot import: {error}") from None
    calc = factory()
    if not hasattr(calc, "get_potential_energy"):
        raise CalculatorSetupError(f"made a {type(calc).__name__}, which is no ASE calculator")
    missing = [quantity for quantity in NEEDED if quantity not in getattr(calc, "implemented_properties", NEEDED)]
    if missing:
        raise CalculatorSetupError(f"made a {type(calc).__name__}, which has no {', '.join(missing)}")
    record = CalculatorRecord(name, version=getattr(importlib.import_module(module), "__version__", None))
    made = [calc]
    return WatchedCalculator(name, lambda: made.pop() if made else factory()), record
