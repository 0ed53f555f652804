"""Laws of the smeared radial distribution function."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.geometry.rdf import get_rdf

from ase_hvae.errors import StructureError
from ase_hvae.rdf import (
    RDFSettings,
    batch_rdf,
    channel_pairs,
    neighbor_list,
    radial_distribution,
    reduced,
)

TOLERANCE = 1e-6  # of a g(r) with peaks of order 10: what the finite window of the smearing leaves


def rattled(seed: int = 0, symbols: str = "Si4") -> Atoms:
    rng = np.random.default_rng(seed)
    cell = np.diag([4.0, 4.5, 5.2]) + rng.normal(0, 0.3, (3, 3))
    grid = np.array([[0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0, 0.5], [0, 0.5, 0.6]])
    return Atoms(symbols, cell=cell, scaled_positions=grid + rng.normal(0, 0.02, (4, 3)), pbc=True)


def unimodular(atoms: Atoms) -> Atoms:
    matrix = np.array([[1, 2, -1], [0, 1, 3], [0, 0, 1]])
    return Atoms(atoms.symbols, positions=atoms.positions, cell=matrix @ atoms.cell.array, pbc=True)


def rotated(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.rotate(37.0, (1, 2, 3), rotate_cell=True)
    return copy


def translated(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.positions += [0.3, -7.0, 12.0]
    return copy


def neighbor_distances(atoms: Atoms, cutoff: float) -> np.ndarray:
    neighbors = neighbor_list([atoms], cutoff)
    difference = atoms.positions[neighbors.neighbor] - atoms.positions[neighbors.center]
    return np.linalg.norm(difference + neighbors.shifts.numpy() @ atoms.cell.array, axis=1)


SAME_CRYSTAL = {
    "rotation": rotated,
    "translation": translated,
    "permutation": lambda atoms: atoms[[2, 0, 3, 1]],
    "wrapping": lambda atoms: Atoms(atoms, positions=atoms.get_positions(wrap=True)),
    "supercell": lambda atoms: make_supercell(atoms, [[2, 0, 0], [1, 2, 0], [0, 0, 1]]),
    "unimodular": unimodular,
}


@pytest.mark.parametrize("change", SAME_CRYSTAL.values(), ids=SAME_CRYSTAL.keys())
@pytest.mark.parametrize("symbols", ["Si4", "Si2C2"])
def test_does_not_depend_on_the_choice_of_cell(change, symbols):
    atoms = rattled(symbols=symbols)
    np.testing.assert_allclose(radial_distribution(change(atoms)), radial_distribution(atoms), atol=TOLERANCE)


def test_tends_to_one_without_order():
    rng = np.random.default_rng(1)
    atoms = Atoms("Si1200", cell=[20.0] * 3, scaled_positions=rng.random((1200, 3)), pbc=True)
    rdf = radial_distribution(atoms, rmax=8.0, n_bins=20, sigma=0.3)
    # some 20,000 pairs within a sigma at the far end: 0.7 % noise
    assert np.abs(rdf[14:] - 1).max() < 0.03


def test_first_shell_of_diamond_holds_four_atoms():
    atoms = bulk("Si", "diamond", 5.43)
    settings = RDFSettings()
    density = len(atoms) / atoms.get_volume()
    counts = radial_distribution(atoms) * density * 4 * np.pi * settings.grid**2 * settings.bin_width
    shell = settings.grid < 3.0  # second shell is at 3.84 Å
    assert counts[shell].sum() == pytest.approx(4.0, abs=1e-4)
    assert settings.grid[np.argmax(counts[shell])] == pytest.approx(2.351, abs=settings.bin_width)


def test_agrees_with_ase_on_a_supercell():
    atoms = make_supercell(rattled(3), 4 * np.eye(3, dtype=int))
    rmax, n_bins, fine, sigma = 6.0, 60, 40, 0.004
    reference, centres = get_rdf(atoms, rmax, n_bins)
    # ASE counts the pairs in a bin: sum a finely sampled, sharp g(r) over ASE's bins
    sharp = radial_distribution(atoms, rmax=rmax, n_bins=n_bins * fine, sigma=sigma)
    grid = RDFSettings(rmax, n_bins * fine, sigma).grid
    ours = np.cumsum((sharp * grid**2).reshape(n_bins, fine).mean(1))
    theirs = np.cumsum(reference * centres**2)
    distances = np.unique(neighbor_distances(atoms, rmax + 1))
    edges = np.arange(1, n_bins + 1) * rmax / n_bins
    clear = np.abs(distances[:, None] - edges).min(0) > 6 * sigma  # edges that no pair is smeared over
    assert clear.sum() >= 8
    # ASE's shell volume is that of r^2 at the centre of the bin, ours of each fine bin
    np.testing.assert_allclose(ours[clear], theirs[clear], rtol=2e-3)


def test_gradient_agrees_with_finite_differences():
    atoms = rattled(5)
    settings = RDFSettings(rmax=5.0, n_bins=60, sigma=0.15)
    neighbors = neighbor_list([atoms, rattled(6)], settings.cutoff)
    cells = torch.from_numpy(np.stack([atoms.cell.array, rattled(6).cell.array]))
    scaled = torch.from_numpy(np.vstack([a.get_scaled_positions(wrap=False) for a in (atoms, rattled(6))]))
    weight = torch.linspace(-1, 1, 60, dtype=torch.float64)

    def loss(cells, scaled):
        return (batch_rdf(cells, scaled, neighbors, settings) * weight).sum()

    inputs = (cells.requires_grad_(), scaled.requires_grad_())
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    rng = np.random.default_rng(0)
    for _ in range(3):
        steps = [torch.from_numpy(rng.normal(size=tuple(t.shape))) for t in inputs]
        values = [loss(*(t.detach() + s * d for t, d in zip(inputs, steps, strict=True))) for s in (1e-5, -1e-5)]
        expected = sum((g * d).sum() for g, d in zip(gradients, steps, strict=True))
        assert float((values[0] - values[1]) / 2e-5) == pytest.approx(float(expected), rel=1e-5)


def test_one_centre_stands_for_its_orbit():
    atoms = bulk("Mg", "hcp", 3.2, 5.2)
    settings = RDFSettings()
    neighbors = neighbor_list([atoms], settings.cutoff)
    arguments = torch.from_numpy(atoms.cell.array)[None], torch.from_numpy(atoms.get_scaled_positions(wrap=False))
    weights = torch.tensor([2.0, 0.0], dtype=torch.float64)
    one = batch_rdf(*arguments, neighbors, settings, center_weights=weights)
    np.testing.assert_allclose(one, batch_rdf(*arguments, neighbors, settings), atol=TOLERANCE)


def test_binary_channels_sum_to_the_total():
    atoms = rattled(7, "Si3C")
    channels = radial_distribution(atoms, species=("Si", "C"))
    assert channel_pairs(("Si", "C")) == [("C", "C"), ("C", "Si"), ("Si", "Si")]
    assert channels.shape == (3, 200)
    total = radial_distribution(Atoms("Si4", positions=atoms.positions, cell=atoms.cell, pbc=True))
    fraction = np.array([1 / 16, 2 * 3 / 16, 9 / 16])
    np.testing.assert_allclose(fraction @ channels, total, atol=1e-10)


def test_batch_equals_one_by_one_and_absent_species_give_zero():
    structures = [bulk("Si"), rattled(8), rattled(9)]
    batch = radial_distribution(structures)
    assert batch.shape == (3, 200)
    np.testing.assert_allclose(batch, [radial_distribution(a) for a in structures], atol=1e-12)
    channels = radial_distribution(bulk("Si"), species=("C", "Si"))
    assert not channels[:2].any()
    np.testing.assert_allclose(channels[2], batch[0], atol=1e-12)


def test_reduced_function():
    atoms = bulk("Si")
    rdf = radial_distribution(atoms)
    density = len(atoms) / atoms.get_volume()
    grid = RDFSettings().grid
    np.testing.assert_allclose(reduced(rdf, density), 4 * np.pi * grid * density * (rdf - 1))
    assert reduced(np.stack([rdf, rdf]), np.array([density, density])).shape == (2, 200)
    with pytest.raises(ValueError, match="100 bins"):
        reduced(np.ones(100), density)


@pytest.mark.parametrize(
    ("atoms", "match"),
    [
        (Atoms(cell=[4, 4, 4], pbc=True), "empty"),
        (Atoms("Si", positions=[[np.nan, 0, 0]], cell=[4, 4, 4], pbc=True), "non-finite"),
        (Atoms("Si", cell=[4, 4, np.inf], pbc=True), "non-finite"),
        (Atoms("Si", cell=[4, 4, 4], pbc=[True, True, False]), "periodic"),
        (Atoms("Si", cell=np.zeros((3, 3)), pbc=True), "volume"),
    ],
)
def test_refuses_bad_structures(atoms, match):
    with pytest.raises(StructureError, match=match):
        radial_distribution(atoms)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"sigma": 0.0}, "sigma"), ({"rmax": -1.0}, "rmax"), ({"n_bins": 0}, "n_bins"), ({"species": ("C",)}, "have Si")],
)
def test_refuses_bad_settings(options, match):
    with pytest.raises(ValueError, match=match):
        radial_distribution(bulk("Si"), **options)


def test_refuses_no_structures():
    with pytest.raises(ValueError, match="no structures"):
        radial_distribution([])
