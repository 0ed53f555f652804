"""The choice of a calculator, once per run: MAISE potential, VASP, or any factory; the only door to either."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ase.calculators.calculator import Calculator, CalculatorSetupError, ReadError
from ase.config import cfg

logger = logging.getLogger(__name__)

VASP_COMMANDS = ("ASE_VASP_COMMAND", "VASP_COMMAND", "VASP_SCRIPT")


@dataclass(frozen=True)
class CalculatorRecord:
    """Which calculator a run used.

    Attributes
    ----------
    name : str
        ``maise``, ``vasp``, ``module:factory`` or the class of a calculator that was handed in.
    model, sha256 : str or None
        Name or file of the potential and the hash of its file, where there is one.
    version : str or None
        Version that the program or model states of itself.
    """

    name: str
    model: str | None = None
    sha256: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        model = "" if self.model is None else f", model {self.model}"
        return self.name + model + ("" if self.sha256 is None else f" (sha256 {self.sha256[:8]})")


def get_calculator(
    names: str = "maise", *, species: Sequence[str], model: str = "silicon"
) -> tuple[Calculator, CalculatorRecord]:
    """First calculator of a list that can treat the given elements.

    Parameters
    ----------
    names : str
        Comma-separated, in order of preference: ``maise``, ``vasp`` or ``module:factory``; a factory is called without
        arguments and returns an ASE calculator.
    species : sequence of str
        Chemical symbols that must be covered.
    model : str
        MAISE model: a shipped name or a model file.

    Raises
    ------
    CalculatorSetupError
        If none of them can; the message holds the reason of each.
    """
    refusals = []
    for name in (part.strip() for part in names.split(",")):
        try:
            calc, record = _open(name, sorted(set(species)), model)
        except (CalculatorSetupError, ReadError) as error:
            refusals.append(f"{name or 'empty name'}: {error}")
            continue
        for refusal in refusals:
            logger.warning("calculator refused, the next one is used: %s", refusal)
        return calc, record
    raise CalculatorSetupError("no calculator for " + ", ".join(sorted(set(species))) + ": " + "; ".join(refusals))


def _open(name: str, species: list[str], model: str) -> tuple[Calculator, CalculatorRecord]:
    if name == "maise":
        return _maise(species, model)
    if name == "vasp":
        return _vasp(species)
    if ":" in name:
        return _factory(name)
    raise CalculatorSetupError("unknown calculator; use maise, vasp or module:factory")


def _maise(species: list[str], model: str) -> tuple[Calculator, CalculatorRecord]:
    from maise_bridge import MaiseCalculator

    calc = MaiseCalculator(model=model)
    missing = [symbol for symbol in species if symbol not in calc.species]
    if missing:
        covered = ", ".join(calc.species)
        raise CalculatorSetupError(f"model {model!r} covers {covered}, not {', '.join(missing)}; pass another model")
    assert calc.model_path is not None
    digest = hashlib.sha256(calc.model_path.read_bytes()).hexdigest()
    return calc, CalculatorRecord("maise", model=model, sha256=digest, version=calc.potential.model.unique_id)


def _vasp(species: list[str]) -> tuple[Calculator, CalculatorRecord]:
    """VASP through ASE with settings for a relaxation; everything that it needs is looked for first."""
    missing = []
    if not any(variable in cfg for variable in VASP_COMMANDS):
        missing.append(f"the command of VASP (set {' or '.join(VASP_COMMANDS)})")
    enmax = 0.0
    if "VASP_PP_PATH" not in cfg:
        missing.append("the pseudopotentials (set VASP_PP_PATH)")
    else:
        for symbol in species:
            potcar = Path(cfg["VASP_PP_PATH"]) / "potpaw_PBE" / symbol / "POTCAR"
            if potcar.is_file():
                enmax = max(enmax, _read_enmax(potcar))
            else:
                missing.append(f"the pseudopotential of {symbol} ({potcar})")
    if missing:
        raise CalculatorSetupError("VASP cannot run without " + ", ".join(missing))
    from ase.calculators.vasp import Vasp

    settings = {
        "xc": "pbe",
        "encut": round(1.3 * enmax),
        "kspacing": 0.2,
        "kgamma": True,
        "ediff": 1e-6,
        "prec": "Accurate",
    }
    smearing = {"ismear": 0, "sigma": 0.05, "lreal": False, "lwave": False, "lcharg": False}
    calc = Vasp(directory=f"vasp_{os.getpid()}", **settings, **smearing)
    return calc, CalculatorRecord("vasp", model="PBE " + " ".join(f"{key}={value}" for key, value in settings.items()))


def _read_enmax(potcar: Path) -> float:
    found = re.search(r"ENMAX\s*=\s*([\d.]+)", potcar.read_text(errors="replace"))
    if found is None:
        raise CalculatorSetupError(f"{potcar} has no ENMAX line; is it a VASP pseudopotential?")
    return float(found.group(1))


def _factory(name: str) -> tuple[Calculator, CalculatorRecord]:
    module, _, attribute = name.partition(":")
    try:
        factory: Callable[[], Calculator] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CalculatorSetupError(f"cannot import: {error}") from None
    calc = factory()
    if not hasattr(calc, "get_potential_energy"):
        raise CalculatorSetupError(f"made a {type(calc).__name__}, which is no ASE calculator")
    return calc, CalculatorRecord(name, version=getattr(importlib.import_module(module), "__version__", None))
