"""MAISE neural-network potentials as ASE calculators; usable without ase_hvae.

Public names are loaded on first use: reading and writing model files needs no torch. Importing the package makes the
calculator known to ASE's ``get_calculator_class("maise")``, without loading compiled code.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "GuptaModel": "maise_bridge.gupta",
    "GuptaPotential": "maise_bridge.gupta",
    "Maise": "maise_bridge.executable",
    "MaiseCalculator": "maise_bridge.calculator",
    "MaiseModel": "maise_bridge.model_file",
    "MaisePotential": "maise_bridge.potential",
    "MaiseProfile": "maise_bridge.executable",
    "MaiseTemplate": "maise_bridge.executable",
    "read_model": "maise_bridge.model_file",
    "write_model": "maise_bridge.model_file",
}

__all__ = [
    "GuptaModel",
    "GuptaPotential",
    "Maise",
    "MaiseCalculator",
    "MaiseModel",
    "MaisePotential",
    "MaiseProfile",
    "MaiseTemplate",
    "read_model",
    "write_model",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


def _register() -> None:
    from maise_bridge.plugin import register

    register()


_register()
