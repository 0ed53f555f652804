"""Fixtures that several test modules of the generator share."""

import pytest
import torch
from ase.build import bulk
from ase.config import cfg


@pytest.fixture
def one_thread():
    """Let torch work on one thread, so that results repeat bit for bit."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def no_programs(monkeypatch):
    """An environment without settings of VASP, Quantum ESPRESSO and maise; a fresh ``cfg.parser`` to add some."""
    for variable in ("ASE_VASP_COMMAND", "VASP_COMMAND", "VASP_SCRIPT", "VASP_PP_PATH", "VASP_PP_VERSION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cfg, "parser", type(cfg).read().parser)
    for section in ("environment", "vasp", "espresso", "maise"):
        cfg.parser.remove_section(section)


@pytest.fixture(scope="module")
def crystals():
    """Four named silicon crystals with one or two atoms."""
    structures = [bulk("Si", "diamond", 5.43), bulk("Si", "fcc", 3.9), bulk("Si", "bcc", 3.1), bulk("Si", "sc", 2.5)]
    for name, atoms in zip(["diamond", "fcc", "bcc", "sc"], structures, strict=True):
        atoms.info["name"] = name
    return structures
