"""Known crystals of an element, built from a table of facts, and the shipped HVAE weights."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any

from ase import Atoms
from ase.data import atomic_numbers

from ase_hvae.symmetry import build_crystal, primitive

KNOWN_TABLES = {"Si": "known_silicon.json"}

# What a crystal carries in ``atoms.info``; the rest of the table is documentation.
INFO_KEYS = ("name", "spacegroup", "doi", "energy_above", "category", "confidence", "remark")


def known_table(element: str = "Si") -> list[dict[str, Any]]:
    """Facts on the known crystals of an element, lowest energy first; README.md of this folder explains the fields.

    Raises
    ------
    ValueError
        If the package holds no table for the element.
    """
    if element not in KNOWN_TABLES:
        available = ", ".join(sorted(KNOWN_TABLES))
        raise ValueError(
            f"no table of known crystals for {element!r}; available: {available}; pass structures from a file instead"
        )
    text = resources.files(__name__).joinpath(KNOWN_TABLES[element]).read_text(encoding="utf-8")
    return json.loads(text)["crystals"]


def load_known(element: str = "Si") -> list[Atoms]:
    """Known crystals of an element as idealised primitive cells, lowest energy first.

    Parameters
    ----------
    element : str
        Chemical symbol.

    Returns
    -------
    list of Atoms
        Fresh copies. ``atoms.info`` holds ``name``, ``aliases`` (tuple), ``spacegroup``, ``doi`` (or None),
        ``energy_above`` (published energy above the ground state, eV/atom, or None), ``category``, ``confidence`` and
        ``remark``.

    Raises
    ------
    ValueError
        If the package holds no table for the element.
    """
    return [atoms.copy() for atoms in _build_known(element)]


@lru_cache(maxsize=8)
def _build_known(element: str) -> tuple[Atoms, ...]:
    return tuple(_build(facts, element) for facts in known_table(element))


def _build(facts: dict[str, Any], element: str) -> Atoms:
    """Primitive cell of one row of the table."""
    sites = [(atomic_numbers[element], xyz) for _, *xyz in facts["sites"]]
    atoms = primitive(build_crystal(facts["hall_number"], facts["cellpar"], sites), idealize=True)
    atoms.info = {key: facts[key] for key in INFO_KEYS}
    atoms.info["aliases"] = tuple(facts["aliases"])
    return atoms
