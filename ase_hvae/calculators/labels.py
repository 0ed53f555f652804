"""Labels for fits: what a calculator found, with its record, as ``maise_bridge train`` reads it."""

from __future__ import annotations

import platform
from typing import Any

import ase
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ase_hvae.calculators.record import CalculatorRecord


def label(atoms: Atoms, record: CalculatorRecord, *, config_type: str) -> Atoms:
    """Label as ``maise_bridge label`` writes one: identity, settings, program, versions and k spacing in ``info``.

    Parameters
    ----------
    atoms : Atoms
        With the calculator that holds energy (eV), forces (eV/Å) and stress (eV/Å³); not modified.
    record : CalculatorRecord
        Whose results they are.
    config_type : str
        Tag of the label.
    """
    from maise_bridge.labelling import structure_id

    bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    settings = dict(record.settings)
    program = {"model": record.model, "sha256": record.sha256, record.name: record.version}
    info: dict[str, Any] = {
        "config_type": config_type,
        "structure": structure_id(bare),
        "settings": {"calculator": record.name, **settings},
        "program": {name: value for name, value in program.items() if value is not None},
        "versions": {"ase": ase.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }
    if isinstance(settings.get("kspacing"), int | float):
        info["kspacing"] = float(settings["kspacing"])
    bare.info |= info
    bare.calc = SinglePointCalculator(
        bare,
        energy=float(atoms.get_potential_energy()),
        forces=atoms.get_forces(),
        stress=atoms.get_stress(voigt=True),
    )
    return bare
