"""Quantum ESPRESSO through ASE: pw.x, its pseudopotentials and settings are checked before anything runs."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase.calculators.calculator import CalculationFailed, CalculatorSetupError
from ase.calculators.espresso import Espresso, EspressoProfile
from ase.config import cfg
from ase.io.espresso_namelist.keys import ALL_KEYS
from ase.io.espresso_namelist.namelist import Namelist

from ase_hvae.calculators.preflight import check_keys, check_positive, missing_command, probe_crystal
from ase_hvae.calculators.record import CalculatorRecord, hash_bytes
from ase_hvae.calculators.watched import WatchedCalculator, last_lines

OPTIONS = ("command", "pseudo_dir", "pseudopotentials", "kspacing", "kpts", "koffset", "input_data")
KSPACING = 0.2  # 1/Å with 2 pi
ECUTWFC = 60.0  # Ry, where a pseudopotential does not suggest a cutoff
DUAL_NORM_CONSERVING, DUAL_AUGMENTED = 4.0, 8.0  # least ecutrho / ecutwfc
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "control": {"calculation": "scf", "tstress": True, "tprnfor": True, "disk_io": "none", "outdir": "."},
    "system": {"occupations": "smearing", "smearing": "gaussian", "degauss": 0.00367},  # Ry: 0.05 eV
    "electrons": {"conv_thr": 1e-8},  # Ry
}
_FIXED = {"calculation": "scf", "tstress": True, "tprnfor": True}
_REFUSED = {"pseudo_dir": "write it beside input_data", "outdir": "a run keeps the files of pw.x in its own folder"}


class WatchedEspresso(WatchedCalculator):
    """pw.x under watch: a run that did not converge or end is refused."""

    def verify(self) -> None:
        """Refuse a run without the lines of a converged electronic loop and of a good end."""
        text = self._output.read_text(encoding="utf-8", errors="replace")
        if "convergence has been achieved" not in text:
            raise CalculationFailed("the electronic loop did not converge; raise electron_maxstep or lower mixing_beta")
        if "JOB DONE" not in text:
            raise CalculationFailed("the output of pw.x is cut off: it was killed or the disk is full")

    def explain(self) -> str:
        """Error messages of pw.x, which stand between lines of per cent signs, else what it said of convergence."""
        if not self._output.is_file():
            return ""
        text = self._output.read_text(encoding="utf-8", errors="replace")
        said = re.findall(r"^ *%+\n(.*?)^ *%+$", text, re.MULTILINE | re.DOTALL)
        said = said or re.findall(r"^.*convergence NOT achieved.*$", text, re.MULTILINE)
        return " ".join(" ".join(said).split()) or last_lines(self._output.with_suffix(".err"))

    @property
    def _output(self) -> Path:
        assert self.directory is not None
        return self.directory / "espresso.pwo"


def open_espresso(
    species: Sequence[str], options: Mapping[str, Any], directory: Path
) -> tuple[WatchedEspresso, CalculatorRecord]:
    """Quantum ESPRESSO with settings for a relaxation that ASE drives, one start of pw.x per step.

    The program is started once, without a job, to see that it is pw.x and which version.

    Parameters
    ----------
    species : sequence of str
        Chemical symbols that need a pseudopotential.
    options : mapping
        ``command`` and ``pseudo_dir`` (by default those of section ``[espresso]`` of ASE's configuration; the command
        else ``pw.x``); ``pseudopotentials``, a table of file names by symbol, needed where the folder has not exactly
        one file of an element; ``kspacing`` in 1/Å with 2 pi, as VASP's, or ``kpts`` and ``koffset``; ``input_data``,
        variables of pw.x, nested or flat, in its units. Without ``ecutwfc`` and ``ecutrho`` the cutoffs are the largest
        that the pseudopotentials suggest, else `ECUTWFC` and four (norm-conserving) or eight times as much.

    Raises
    ------
    CalculatorSetupError
        If an option is unknown or of the wrong type, or the program or a pseudopotential is missing.
    """
    _check_options(options)
    profile = _profile(options)
    files = {symbol: _find_pseudopotential(symbol, options, Path(profile.pseudo_dir)) for symbol in species}
    input_data = _input_data(options.get("input_data", {}), list(files.values()))
    parameters: dict[str, Any] = {"pseudopotentials": {symbol: file.name for symbol, file in files.items()}}
    parameters |= {name: options[name] for name in ("kpts", "koffset") if name in options}
    kspacing = options.get("kspacing", KSPACING)
    if "kpts" not in options:
        parameters["kspacing"] = kspacing / (2.0 * math.pi)

    def make() -> Espresso:
        """Return a calculator whose input tables are its own."""
        data = {section: dict(values) for section, values in input_data.items()}
        return Espresso(profile=profile, directory=directory, input_data=data, **parameters)

    _try_inputs(make(), species)
    record = CalculatorRecord(
        "espresso",
        model=" ".join(file.name for file in files.values()),
        sha256=hash_bytes(file.read_bytes() for file in files.values()),
        version=_version(profile),
        settings={**input_data, **{name: options[name] for name in ("kpts", "koffset") if name in options}}
        | ({} if "kpts" in options else {"kspacing": kspacing}),
    )
    return WatchedEspresso("espresso", make, directory), record


def _check_options(options: Mapping[str, Any]) -> None:
    check_keys("espresso", options, OPTIONS, {"directory": "a run keeps the files of pw.x in its own folder"})
    check_positive("espresso", options, "kspacing")
    for name, kind in (("command", str), ("pseudo_dir", str), ("pseudopotentials", Mapping), ("input_data", Mapping)):
        if name in options and not isinstance(options[name], kind):
            wanted = "text" if kind is str else "a table"
            raise CalculatorSetupError(f"{name} = {options[name]!r} in [espresso] must be {wanted}")
    if "kpts" in options and "kspacing" in options:
        raise CalculatorSetupError("[espresso] has both kpts and kspacing; leave one of them out")


def _profile(options: Mapping[str, Any]) -> EspressoProfile:
    """Command and folder of pseudopotentials, or an error that names all that is missing of them."""
    command = options.get("command") or cfg.parser.get("espresso", "command", fallback="pw.x")
    folder = options.get("pseudo_dir") or cfg.parser.get("espresso", "pseudo_dir", fallback=None)
    missing = []
    reason = missing_command(command)
    if reason is not None:
        missing.append(f"its executable ({reason}; set command in [espresso])")
    if folder is None:
        missing.append("the folder of pseudopotentials (set pseudo_dir in [espresso])")
    elif not Path(folder).is_dir():
        missing.append(f"the folder of pseudopotentials (pseudo_dir is {folder}, which is no folder)")
    if missing:
        raise CalculatorSetupError("Quantum ESPRESSO cannot run without " + ", ".join(missing))
    return EspressoProfile(command=command, pseudo_dir=Path(folder).resolve())


def _version(profile: EspressoProfile) -> str:
    try:
        return profile.version()
    except (AssertionError, OSError, UnicodeDecodeError) as error:
        raise CalculatorSetupError(f"{profile.command!r} does not print a version: it is not pw.x") from error


def _find_pseudopotential(symbol: str, options: Mapping[str, Any], folder: Path) -> Path:
    """File named in the options, else the only one in the folder that is named after the element."""
    named = options.get("pseudopotentials", {}).get(symbol)
    if named is not None:
        file = folder / str(named)
        if not file.is_file() or file.parent != folder:
            raise CalculatorSetupError(f"the pseudopotential of {symbol} is missing: {folder} has no file {named!r}")
    else:
        pattern = re.compile(rf"{symbol}[._-].*\.upf|{symbol}\.upf", re.IGNORECASE)
        found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
        if len(found) != 1:
            what = f"has {', '.join(path.name for path in found)}" if found else "has none"
            remedy = f'name one in [espresso], as pseudopotentials = {{{symbol} = "FILE"}}'
            raise CalculatorSetupError(f"the pseudopotential of {symbol} is not clear: {folder} {what}; {remedy}")
        file = found[0]
    element = _header(file).get("element", symbol).strip().capitalize()
    if element != symbol:
        raise CalculatorSetupError(f"{file} is a pseudopotential of {element}, not of {symbol}")
    return file


def _header(file: Path) -> dict[str, str]:
    """What PP_HEADER of a UPF file, old or new, says of element, type and cutoffs."""
    text = file.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"<PP_HEADER\s(.*?)/>", text, re.DOTALL)
    if found:
        return dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', found[1]))
    header = text.partition("<PP_HEADER>")[2].partition("</PP_HEADER>")[0]
    patterns = {
        "element": r"^\s*(\w+)\s+Element",
        "pseudo_type": r"^\s*(NC|US|PAW)\s",
        "wfc_cutoff": r"^\s*(\S+)\s+\S+\s+Suggested cutoff",
        "rho_cutoff": r"^\s*\S+\s+(\S+)\s+Suggested cutoff",
    }
    values = {name: re.search(pattern, header, re.MULTILINE) for name, pattern in patterns.items()}
    return {name: value[1] for name, value in values.items() if value}


def _cutoffs(files: Sequence[Path], ecutwfc: float | None) -> tuple[float, float]:
    """Cutoffs for wavefunctions and density that suit all pseudopotentials; Ry."""
    headers = [_header(file) for file in files]
    if ecutwfc is None:
        ecutwfc = math.ceil(max(_number(header, "wfc_cutoff") or ECUTWFC for header in headers))
    augmented = any(header.get("pseudo_type", "NC").strip() in ("US", "USPP", "PAW") for header in headers)
    dual = DUAL_AUGMENTED if augmented else DUAL_NORM_CONSERVING
    suggested = [_number(header, "rho_cutoff") for header in headers]
    if augmented and all(suggested):
        dual = DUAL_NORM_CONSERVING  # the suggestions decide, down to what the wavefunctions need
    return float(ecutwfc), float(max(dual * ecutwfc, *(math.ceil(value) for value in suggested)))


def _number(header: Mapping[str, str], name: str) -> float:
    """A number of the header; 0 if it has none."""
    return float(header.get(name, "0").lower().replace("d", "e"))


def _input_data(given: Mapping[str, Any], files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Variables of pw.x by namelist: those given, which win, and the defaults."""
    keys = ALL_KEYS["pw"]
    data: dict[str, dict[str, Any]] = {section: dict(values) for section, values in DEFAULTS.items()}
    flat = {key: value for key, value in given.items() if not isinstance(value, Mapping)}
    nested = {key.lower(): value for key, value in given.items() if isinstance(value, Mapping)}
    check_keys("espresso.input_data", nested, keys, {})
    for section, values in [*nested.items(), (None, flat)]:
        for name, value in values.items():
            home = Namelist.search_key(name.lower(), keys)
            if name.lower() in _REFUSED:
                raise CalculatorSetupError(f"{name} in [espresso] input_data is refused: {_REFUSED[name.lower()]}")
            if home is None or section not in (None, home):
                where = "" if section is None else f" of &{section.upper()}"
                raise CalculatorSetupError(f"unknown variable {name!r}{where} in [espresso] input_data")
            if value != _FIXED.get(name.lower(), value):
                raise CalculatorSetupError(
                    f"{name} = {value!r} in [espresso] is refused: ase_hvae moves atoms and cell itself, by energies, "
                    "forces and stresses of single structures; leave it out"
                )
            data.setdefault(home, {})[name.lower()] = value
    ecutwfc, ecutrho = _cutoffs(files, data["system"].get("ecutwfc"))
    data["system"] = {"ecutwfc": ecutwfc, "ecutrho": ecutrho, **data["system"]}
    return data


def _try_inputs(calc: Espresso, species: Sequence[str]) -> None:
    """Let ASE write the input once, to see that it can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            calc.template.write_input(calc.profile, Path(folder), probe_crystal(species), calc.parameters, ["energy"])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise CalculatorSetupError(f"ASE cannot write the input of pw.x with these options: {error}") from error
