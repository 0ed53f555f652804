"""Model files that we write, read by the real MAISE; runs where its executable is on PATH."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from maise_bridge import GuptaModel, GuptaPotential, MaiseModel, MaisePotential, read_model
from maise_bridge.basis import parse_basis, standard_basis
from maise_bridge.calculator import find_model

DATA = Path(__file__).parents[1] / "data" / "bridge"

pytestmark = pytest.mark.maise


def crystal(species, spacing):
    """Five atoms in a triclinic cell, in the order of the species, none on a face of the cell."""
    rng = np.random.default_rng(7)
    sites = np.array([[0.1, 0.1, 0.1], [0.55, 0.1, 0.6], [0.6, 0.6, 0.1], [0.1, 0.6, 0.55], [0.35, 0.35, 0.85]])
    cell = spacing * np.array([[2, 0, 0], [0.3, 1.9, 0], [-0.2, 0.4, 2.1]])
    symbols = sorted((species * 5)[:5], key=species.index)
    return Atoms(symbols, cell=cell, pbc=True, scaled_positions=sites + rng.uniform(-0.02, 0.02, sites.shape))


def network(species, basis, widths, seed=0):
    """A model with random weights and the widths given for its layers."""
    rng = np.random.default_rng(seed)
    layers = list(zip([basis.n_inputs(len(species)), *widths], [*widths, 1], strict=True))
    n = len(species)
    return MaiseModel.create(
        species,
        basis,
        maximum=rng.uniform(0.1, 2, (n, layers[0][0])),
        weights=[rng.normal(scale=1 / np.sqrt(n_in), size=(n, n_out, n_in)) for n_in, n_out in layers],
        biases=[rng.normal(size=(n, n_out)) for _, n_out in layers],
    )


def shifted_basis():
    """The standard functions, one pair function of them around a distance."""
    text = standard_basis(51).text.replace("Rs   1   0.0000", "Rs   2   0.0000   3.8000")
    return parse_basis(text.replace("  8   2   0   0 ", "  8   2   0   1 "))


MODELS = {
    "shipped silicon": lambda: read_model(find_model("silicon")),
    "one species": lambda: read_model(DATA / "si.model"),
    "two species": lambda: read_model(DATA / "mgsi.model"),
    "three species": lambda: read_model(DATA / "cgesi.model"),
    "wide": lambda: network(["Sn"], standard_basis(51), (100, 100)),
    "wider, shifted functions": lambda: network(["Si"], shifted_basis(), (250, 250)),
    "unequal layers": lambda: network(["Cu", "Pd"], standard_basis(30), (7, 25)),
    "gupta": lambda: read_model(DATA / "cu_gupta.model"),
    "gupta alloy": lambda: read_model(DATA / "cuau_gupta.model"),
    "gupta created": lambda: GuptaModel.create(["Pd", "Ag"], [[0.17, 11, 1.7, 3.8, 2.75, 6, 1 / 0.15]] * 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_maise_computes_the_same_from_a_written_model(name, real_maise):
    model = MODELS[name]()
    atoms = crystal(list(model.species), 2.3 if "three" in name else 2.6)
    potential = GuptaPotential(model) if isinstance(model, GuptaModel) else MaisePotential(model)
    expected = potential.evaluate([atoms])[0]
    energy, forces = real_maise(model, atoms)
    assert np.abs(forces).max() > 0.01
    assert energy == pytest.approx(expected.energy, rel=0, abs=1e-11)
    np.testing.assert_allclose(forces, expected.forces, rtol=0, atol=1e-10)
