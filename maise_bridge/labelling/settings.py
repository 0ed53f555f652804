"""Settings of the programs that label structures: explicit, recorded with every label, JSON types only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.units import Ry

PROGRAMS = ("gpaw", "espresso", "vasp")
_MACHINE = ("command", "pseudo_dir")  # where things are on this machine, not what is computed
_SMEARING = 0.1  # eV, Marzari-Vanderbilt
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpaw": {
        "xc": "PBE",
        "occupations": {"name": "marzari-vanderbilt", "width": _SMEARING},
        "convergence": {"energy": 1e-4, "density": 1e-4, "eigenstates": 1e-5},
        "maxiter": 80,
    },
    "espresso": {
        "command": "pw.x",
        "input_data": {
            "system": {"occupations": "smearing", "smearing": "mv", "degauss": round(_SMEARING / Ry, 8)},
            "electrons": {"conv_thr": 1e-8, "electron_maxstep": 80},
        },
    },
    "vasp": {"xc": "PBE", "prec": "Accurate", "ediff": 1e-6, "ismear": 0, "sigma": 0.05, "lreal": False},
}
_PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "silicon": (
        "gpaw",
        {
            "ecut": 260.0,
            "kspacing": 0.25,
            "eigensolver": "rmm-diis",
            "small": {"n_atoms": 2, "kspacing": 0.22, "eigensolver": "davidson"},
        },
    ),
    "silicon-espresso": (
        "espresso",
        {
            "kspacing": 0.25,
            "small": {"n_atoms": 2, "kspacing": 0.22},
            "pseudopotentials": {"Si": "Si.pbe-nl-rrkjus_psl.1.0.0.UPF"},
            "input_data": {"system": {"ecutwfc": 30.0, "ecutrho": 180.0}},
        },
    ),
}
PRESETS = tuple(_PRESETS)


@dataclass(frozen=True, eq=False)
class LabelSettings:
    """A program and what it is told, made by :func:`make_settings`.

    Attributes
    ----------
    calculator : str
        ``gpaw``, ``espresso``, ``vasp`` or ``module:factory``.
    options : mapping
        Options of the program, of JSON types. ``kspacing`` (1/Å with 2 pi) gives Gamma-centred meshes; the table
        ``small`` holds the options that differ in cells of at most ``n_atoms`` atoms.
    """

    calculator: str
    options: Mapping[str, Any]

    def for_structure(self, n_atoms: int) -> dict[str, Any]:
        """Options for a cell of so many atoms, `small` resolved."""
        options = {name: value for name, value in self.options.items() if name != "small"}
        small = dict(self.options.get("small", {}))
        return options | small if n_atoms <= small.pop("n_atoms", 0) else options

    @property
    def record(self) -> dict[str, Any]:
        """What is stored with each label: all but the places of files on this machine."""
        kept = {name: value for name, value in self.options.items() if name not in _MACHINE}
        return json.loads(json.dumps({"calculator": self.calculator, **kept}, sort_keys=True))


def make_settings(
    calculator: str | None = None,
    *,
    preset: str | None = None,
    ecut: float | None = None,
    kspacing: tuple[float, ...] | None = None,
    options: Mapping[str, Any] | None = None,
) -> LabelSettings:
    """Put settings together: defaults of the program, the preset over them, the arguments over both.

    Parameters
    ----------
    calculator : str, optional
        ``gpaw``, ``espresso``, ``vasp`` or ``module:factory``; the preset's own by default.
    preset : str, optional
        One of `PRESETS`.
    ecut : float, optional
        Plane waves; eV.
    kspacing : tuple of float, optional
        Spacing of Gamma-centred meshes, 1/Å with 2 pi; a second value is for cells of one or two atoms.
    options : mapping, optional
        Keywords of ``gpaw.GPAW``, ASE's ``Espresso`` or ``Vasp``, or of the factory. Tables are merged.

    Raises
    ------
    ValueError
        If a name is unknown, a number is not positive, or the cutoff, the spacing or the pseudopotentials of
        Espresso are missing: what decides about the numbers must be said.
    """
    if preset is not None and preset not in _PRESETS:
        raise ValueError(f"preset {preset!r} is unknown; there are {', '.join(PRESETS)}")
    own, preset_options = (None, {}) if preset is None else _PRESETS[preset]
    calculator = calculator or own
    if calculator is None or (calculator not in PROGRAMS and ":" not in calculator):
        raise ValueError(f"calculator {calculator!r}: give {', '.join(PROGRAMS)} or module:factory, or a preset")
    if own not in (None, calculator):
        raise ValueError(f"preset {preset!r} is for {own}, not for {calculator}; leave one of them out")
    merged = merge(merge(_DEFAULTS.get(calculator, {}), preset_options), options or {})
    merged = merge(merged, _from_numbers(calculator, ecut, kspacing))
    if kspacing is not None and len(kspacing) == 1:
        merged.get("small", {}).pop("kspacing", None)
    _check(calculator, merged)
    return LabelSettings(calculator, merged)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the entries of `over`, table by table."""
    merged = {name: merge(value, {}) if isinstance(value, Mapping) else value for name, value in base.items()}
    for name, value in over.items():
        if isinstance(value, Mapping):
            inner = merged.get(name)
            value = merge(inner if isinstance(inner, Mapping) else {}, value)
        merged[name] = value
    return merged


def k_mesh(atoms: Atoms, kspacing: float) -> tuple[int, int, int]:
    """Smallest Gamma-centred mesh with |b_i| / n_i <= `kspacing` (1/Å with 2 pi)."""
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(atoms.cell.array).T, axis=1)
    first, second, third = (max(1, math.ceil(length / kspacing - 1e-6)) for length in lengths)
    return first, second, third


def _from_numbers(calculator: str, ecut: float | None, kspacing: tuple[float, ...] | None) -> dict[str, Any]:
    """Options that the arguments `ecut` and `kspacing` stand for."""
    found: dict[str, Any] = {}
    if (ecut is not None or kspacing is not None) and calculator not in PROGRAMS:
        raise ValueError(f"{calculator} is a factory: pass its own keywords as options instead of ecut and kspacing")
    if ecut is not None:
        if calculator == "espresso":
            found["input_data"] = {"system": {"ecutwfc": round(ecut / Ry, 6)}}
        else:
            found["ecut" if calculator == "gpaw" else "encut"] = ecut
    if kspacing is not None:
        if len(kspacing) not in (1, 2):
            raise ValueError(f"kspacing {kspacing}: give one spacing, or two, the second for 1-2 atoms")
        found["kspacing"] = kspacing[0]
        if len(kspacing) == 2:
            found["small"] = {"n_atoms": 2, "kspacing": kspacing[1]}
    return found


def _check(calculator: str, options: Mapping[str, Any]) -> None:
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"options of {calculator} must be numbers, texts, lists and tables: {error}") from None
    if calculator not in PROGRAMS:
        return
    cutoffs = {
        "gpaw": ("ecut", options.get("ecut")),
        "espresso": ("ecutwfc", options.get("input_data", {}).get("system", {}).get("ecutwfc")),
        "vasp": ("encut", options.get("encut")),
    }
    name, cutoff = cutoffs[calculator]
    needed = {name: cutoff, "kspacing": options.get("kspacing")}
    for key, value in needed.items():
        if value is None:
            raise ValueError(f"{calculator} needs {key}; give --ecut and --kspacing, or a preset")
    if "kspacing" in options.get("small", {}):
        needed["kspacing of small cells"] = options["small"]["kspacing"]
    for key, value in needed.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{key} is {value!r}; it must be a positive number")
    if calculator == "espresso" and not isinstance(options.get("pseudopotentials"), Mapping):
        raise ValueError('espresso needs its pseudopotentials; give --set \'pseudopotentials={"Si": "FILE"}\'')
