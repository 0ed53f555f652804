"""VASP through ASE: everything that it needs is looked for first, and a run that did not end well is an error."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError
from ase.calculators.vasp import Vasp
from ase.calculators.vasp.create_input import GenerateVaspInput
from ase.config import cfg

from ase_hvae.calculators.preflight import check_keys, check_positive, missing_command, probe_crystal
from ase_hvae.calculators.record import CalculatorRecord, hash_bytes
from ase_hvae.calculators.watched import WatchedCalculator, last_lines

DEFAULTS: Mapping[str, Any] = {
    "xc": "pbe",
    "isif": 3,
    "ibrion": -1,
    "nsw": 0,
    "ediff": 1e-6,
    "nelm": 100,
    "prec": "Accurate",
    "ismear": 0,
    "sigma": 0.05,
    "lreal": False,
    "lwave": False,
    "lcharg": False,
}
KSPACING = 0.2  # 1/Å with 2 pi
ENCUT_FACTOR = 1.3  # times the largest ENMAX, for a stress with little Pulay error
_OUTPUTS = ("vasprun.xml", "OUTCAR", "OSZICAR", "CONTCAR", "vasp.out")
_OUR_WORK = "ase_hvae moves atoms and cell itself; leave it out"
_REFUSED = {
    "nsw": _OUR_WORK,
    "ibrion": _OUR_WORK,
    "isif": "ase_hvae needs forces and stress (ISIF = 3); leave it out",
    "pstress": "give pressure in [relax] instead",
    "directory": "a run keeps VASP's files in its own folder; leave it out",
    "label": "a run keeps VASP's files in its own folder; leave it out",
    "txt": "VASP's output goes to vasp.out; leave it out",
    "restart": "every structure is computed anew; leave it out",
    "atoms": "the structures come from the run; leave it out",
}


class WatchedVasp(WatchedCalculator):
    """VASP under watch: results of an earlier structure are removed first, unconverged or cut-off ones refused."""

    def prepare(self) -> None:
        """Remove the outputs of the last structure, so that they can never be read as those of the next."""
        super().prepare()
        assert self.directory is not None
        for name in _OUTPUTS:
            (self.directory / name).unlink(missing_ok=True)

    def verify(self) -> None:
        """Refuse a vasprun.xml that is cut off, of which ASE reads what there is, and a loop that did not converge."""
        assert self.directory is not None
        file = self.directory / "vasprun.xml"
        if b"</modeling>" not in file.read_bytes()[-200:]:
            raise CalculationFailed("vasprun.xml is cut off: VASP was killed or the disk is full")
        if self.inner.converged is not True:
            raise CalculationFailed("the electronic loop did not converge; raise nelm or change algo in [vasp]")

    def explain(self) -> str:
        """Last lines of VASP's standard output."""
        assert self.directory is not None
        return last_lines(self.directory / "vasp.out")


def open_vasp(
    species: Sequence[str], options: Mapping[str, Any], directory: Path
) -> tuple[WatchedVasp, CalculatorRecord]:
    """VASP with settings for a relaxation that ASE drives.

    One call of VASP computes energy, forces and stress of one structure (``NSW = 0``, ``IBRION = -1``, ``ISIF = 3``),
    and `ase_hvae.relax` moves atoms and cell. VASP could do that itself with ``IBRION = 2``, but then it would keep the
    basis of the first cell, its limits and convergence would not be those of the other calculators, and a structure
    that explodes would be noticed only at the end. The price is one start of VASP per step.

    The energy is VASP's extrapolation to zero smearing, as always in ASE. With ``kspacing`` the mesh follows the cell,
    so that energies may jump slightly within a relaxation.

    Parameters
    ----------
    species : sequence of str
        Chemical symbols that need a POTCAR.
    options : mapping
        Keyword options of `ase.calculators.vasp.Vasp`, which win over `DEFAULTS`; ``command`` among them wins over
        ``ASE_VASP_COMMAND``, ``VASP_COMMAND``, ``VASP_SCRIPT`` and ``[vasp] command`` of ASE's configuration. Without
        ``encut`` the cutoff is 1.3 times the largest ENMAX; without ``kpts`` the k-point spacing is 0.2 / Å.
    directory : Path
        Where VASP runs.

    Raises
    ------
    CalculatorSetupError
        If an option is unknown or of the wrong type, or the command or a pseudopotential is missing; the message
        names everything that is missing.
    """
    _check_options(options)
    settings = {**DEFAULTS, **options}
    command = settings.pop("command", None)
    if command is None and not any(variable in cfg for variable in Vasp.env_commands):
        command = cfg.parser.get("vasp", "command", fallback=None)
    if "kpts" in settings:
        settings.setdefault("gamma", True)
    else:
        settings = {"kspacing": KSPACING, "kgamma": True, **settings}
    calc = _make(settings, command, directory)
    missing = [*_missing_command(calc), *_missing_potcars(calc, species)]
    if missing:
        raise CalculatorSetupError("VASP cannot run without " + ", ".join(missing))
    probe = probe_crystal(species)
    calc.initialize(probe)
    potcars = [Path(file) for file in calc.ppp_list]
    settings.setdefault("encut", round(ENCUT_FACTOR * max(_read_enmax(file) for file in potcars)))
    calc.set(encut=settings["encut"])
    model = " ".join([settings["xc"], potcars[0].parent.parent.name, *(file.parent.name for file in potcars)])
    record = CalculatorRecord("vasp", model=model, sha256=hash_bytes([_try_inputs(calc, probe)]), settings=settings)
    return WatchedVasp("vasp", lambda: _make(settings, command, directory), directory), record


def _check_options(options: Mapping[str, Any]) -> None:
    known = {key for table in Vasp().param_state.values() for key in table} | {"command"}
    check_keys("vasp", options, known, _REFUSED)
    check_positive("vasp", options, "encut", "kspacing", "ediff")
    if "kpts" in options and "kspacing" in options:
        raise CalculatorSetupError("[vasp] has both kpts and kspacing; leave one of them out")


def _make(settings: Mapping[str, Any], command: str | None, directory: Path) -> Vasp:
    try:
        return Vasp(directory=str(directory), command=command, txt="vasp.out", **settings)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise CalculatorSetupError(f"ASE's Vasp refuses the options: {error}") from error


def _missing_command(calc: Vasp) -> list[str]:
    try:
        reason = missing_command(calc.make_command(calc.command))
    except CalculatorSetupError:
        return [f"the command of VASP (set {' or '.join(calc.env_commands)}, or command in [vasp])"]
    return [] if reason is None else [f"its executable ({reason})"]


def _missing_potcars(calc: Vasp, species: Sequence[str]) -> list[str]:
    """Which pseudopotentials ASE does not find; the rules for folders and setups are ASE's own."""
    if calc.VASP_PP_PATH not in cfg:
        return [f"the pseudopotentials (set {calc.VASP_PP_PATH})"]
    if not Path(cfg[calc.VASP_PP_PATH]).is_dir():
        return [f"the pseudopotentials ({calc.VASP_PP_PATH} is {cfg[calc.VASP_PP_PATH]}, which is no folder)"]
    missing = []
    for symbol in species:
        try:
            calc.initialize(Atoms(symbol))
        except RuntimeError as error:
            found = re.search(r"Looking for (\S+)", str(error))
            missing.append(f"the pseudopotential of {symbol} ({found[1] if found else error})")
        except (NotImplementedError, KeyError) as error:
            raise CalculatorSetupError(f"ASE finds no set of pseudopotentials for these options: {error}") from error
    return missing


def _read_enmax(potcar: Path) -> float:
    if potcar.suffix == ".Z":
        raise CalculatorSetupError(f"{potcar} is compressed, which ASE cannot pass on to VASP; uncompress it")
    found = re.search(r"ENMAX\s*=\s*([\d.]+)", potcar.read_text(errors="replace"))
    if found is None:
        raise CalculatorSetupError(f"{potcar} has no ENMAX line; is it a VASP pseudopotential?")
    return float(found.group(1))


def _try_inputs(calc: Vasp, probe: Atoms) -> bytes:
    """Let ASE write all inputs once, to see that it can; returns the POTCAR of all species."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            GenerateVaspInput.write_input(calc, probe, directory=folder)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError) as error:
            raise CalculatorSetupError(f"ASE cannot write the inputs of VASP with these options: {error}") from error
        return (Path(folder) / "POTCAR").read_bytes()
