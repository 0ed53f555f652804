"""Every name of code on the page of the theory exists."""

import importlib
import re
from pathlib import Path

import ase_hvae.hvae as hvae
from ase_hvae.dataset import CrystalDataset
from ase_hvae.generator import HVAEGenerator
from ase_hvae.hvae.leapfrog import PhasePoint
from ase_hvae.hvae.networks import SmoothMLP

PAGE = Path(__file__).parents[2] / "docs" / "theory.md"
OWNERS = {
    "HVAE": hvae.HVAE(3),
    "Trajectory": hvae.Trajectory,
    "History": hvae.History,
    "Tempering": hvae.HVAE(3).tempering,
    "PhasePoint": PhasePoint,
    "SmoothMLP": SmoothMLP,
    "CrystalDataset": CrystalDataset,
    "HVAEGenerator": HVAEGenerator,
}


def exists(name):
    owner, *parts = name.split(".")
    value = OWNERS[owner] if owner in OWNERS else importlib.import_module(f"ase_hvae.{owner}")
    for part in parts:
        if part in getattr(value, "__annotations__", {}):
            return True
        if not hasattr(value, part):
            try:
                value = importlib.import_module(f"{value.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        else:
            value = getattr(value, part)
    return True


def test_names_on_the_page_exist():
    text = PAGE.read_text(encoding="utf-8")
    names = set(re.findall(r"`([A-Za-z_]+(?:\.[A-Za-z_]+)+)", text))
    names = {name for name in names if not name.endswith(".py")}
    assert len(names) > 30
    assert [name for name in sorted(names) if not exists(name)] == []
    assert not exists("HVAE.leap")
    assert not exists("dataset.nothing")
