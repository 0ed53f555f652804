"""The real MAISE, run in folders of a test."""

import os
import re
import subprocess

import numpy as np
import pytest
from ase.io import write

from maise_bridge import write_model

SETUP = "JOBT {job}\nNPAR 1\nNDIM 3\nMMAX 700\nMITR 0\nRLXT 0\nMINT 0\nETOL 1e-8\nPGPA 0.0\nUREP 100\nCOUT 10\n"


def run(folder, model, atoms, job):
    """Standard output of MAISE for a model and a structure, in an empty folder."""
    folder.mkdir()
    write_model(model, folder / "model")
    write(folder / "POSCAR", atoms, format="vasp", direct=True)
    (folder / "setup").write_text(SETUP.format(job=job))
    environment = {**os.environ, "MALLOC_PERTURB_": "255", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["maise"], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def real_maise(tmp_path):
    """Energy (eV) and forces (eV/Å, printed with 12 decimals) that MAISE computes for a model and a structure."""

    def compute(model, atoms):
        energy = float(re.search(r"^ +0 +(\S+)$", run(tmp_path / "single", model, atoms, 20), re.M)[1])
        lines = re.findall(r"^ANA(.*)$", run(tmp_path / "test", model, atoms, 23), re.M)
        return energy, np.array([line.split() for line in lines], dtype=float)

    return compute
