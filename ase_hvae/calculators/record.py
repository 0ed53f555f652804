"""What is remembered of the choice of a calculator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CalculatorRecord:
    """Which calculator a run used.

    Attributes
    ----------
    name : str
        ``maise``, ``maise-executable``, ``vasp``, ``espresso``, ``gpaw``, ``module:factory`` or the class of a
        calculator that was handed in.
    model, sha256 : str or None
        Name or file of the potential, or the pseudopotentials, and the hash of their contents, where there are any.
    version : str or None
        Version that the program or model states of itself.
    species : tuple of str
        Chemical symbols that the calculator was chosen for.
    settings : mapping
        Options that the program runs with, defaults included, in its own units; JSON types only.
    refused : tuple of str
        Calculators that come first in the list of preference but cannot be used, each with the reason.
    """

    name: str
    model: str | None = None
    sha256: str | None = None
    version: str | None = None
    species: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()

    def __str__(self) -> str:
        model = "" if self.model is None else f", model {self.model}"
        return self.name + model + ("" if self.sha256 is None else f" (sha256 {self.sha256[:8]})")


def hash_bytes(parts: Iterable[bytes]) -> str:
    """SHA-256 of byte strings, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
