"""Fixtures that several test modules of the generator share."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.config import cfg

from ase_hvae.reconstruct.descent import linearise, make_model
from ase_hvae.reconstruct.kernels import make_space


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


@pytest.fixture
def gradient_errors():
    """Errors of the gradient of the loss along random directions, and what they are to be compared with."""

    def errors(crystals, goal, n_crystals=20):
        rng, tables, found = np.random.default_rng(0), crystals.tables, []
        for index in range(n_crystals):
            t, entry = crystals.template[index], crystals.entry(index)
            space = make_space(entry.n_atoms, 20000, len(goal.target))
            model = make_model(entry.n_atoms, entry.n_parameters, len(goal.target))
            cell, u = crystals.cells[index], crystals.coordinates[index]
            linearise(tables, t, cell, u, goal, space, model)
            direction = rng.normal(size=entry.n_parameters)
            exact, step = model.gradient @ direction, direction / model.scales

            def loss(size, entry=entry, t=t, cell=cell, u=u, step=step, space=space):
                strain = np.einsum("q,qij->ij", size * step[entry.n_free :], entry.strains)
                moved = u.copy()
                moved[: entry.n_free] += size * step[: entry.n_free]
                other = make_model(entry.n_atoms, entry.n_parameters, len(goal.target))
                return linearise(tables, t, cell + cell @ (strain + strain @ strain / 2), moved, goal, space, other)

            numeric = (loss(1e-5) - loss(-1e-5)) / 4e-5  # the gradient is that of half of the squares
            found.append((abs(numeric - exact), np.linalg.norm(model.gradient) * np.linalg.norm(direction)))
        return found

    return errors
