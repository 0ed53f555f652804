"""Agreement with the real MAISE 3.0.00; runs where its reference data lie beside the repository."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from maise_bridge import GuptaModel, GuptaPotential, MaisePotential, read_model
from maise_bridge.model_file import format_model

REFERENCE = Path(__file__).parents[3] / "shared" / "maise_reference"
CASES = json.loads((REFERENCE / "golden.json").read_text())["cases"] if (REFERENCE / "golden.json").exists() else []
MODELS = sorted({case["model"] for case in CASES})

pytestmark = pytest.mark.skipif(not CASES, reason="no ../shared/maise_reference")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_numbers_equal_those_of_maise(case):
    model = read_model(REFERENCE / "models" / case["model"])
    if isinstance(model, GuptaModel):
        potential = GuptaPotential(model)
    else:
        potential = MaisePotential(model, core_repulsion=case["urep"])
    atoms = read(REFERENCE / "structures" / case["structure"], format="vasp")
    atoms.pbc = case["ndim"] == 3
    result = potential.evaluate([atoms])[0]
    assert result.energy == pytest.approx(case["energy_eV"], rel=0, abs=1e-11)
    np.testing.assert_allclose(result.energies - result.repulsion, case["atom_energies_eV"], rtol=0, atol=1e-11)
    np.testing.assert_allclose(result.forces, case["forces_eV_per_A"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(-result.virial[[0, 1, 2, 5, 3, 4]], case["virial_U_eV"], rtol=0, atol=1e-10)
    if case["ndim"] == 3:
        np.testing.assert_allclose(result.stress, case["stress_ase_eV_per_A3"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_model_files_of_maise_survive_byte_for_byte(name):
    path = REFERENCE / "models" / name
    assert format_model(read_model(path)).encode() == path.read_bytes()
