"""New crystals from known ones: a Hamiltonian variational auto-encoder for radial distribution functions.

Public names are loaded on first use, so that ``import ase_hvae`` stays cheap and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "HVAEGenerator": "ase_hvae.generator",
    "generate": "ase_hvae.pipeline",
    "train": "ase_hvae.training",
    "load_model": "ase_hvae.hvae",
}

__all__ = ["HVAEGenerator", "__version__", "generate", "load_model", "train"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
