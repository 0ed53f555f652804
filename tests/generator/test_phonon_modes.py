"""Soft modes, band paths and energies of harmonic motion."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT

from ase_hvae import phonons
from ase_hvae.errors import PhononError
from ase_hvae.relax import relax

DOUBLE, TRIPLE = 2 * np.eye(3, dtype=int), 3 * np.eye(3, dtype=int)
THZ = np.sqrt(units._e / units._amu) * 1e10 / (2 * np.pi) / 1e12  # of sqrt(eV/Å²/amu)
PLANCK = 2 * np.pi * units._hbar / units._e * 1e12  # eV/THz


@pytest.fixture(scope="module")
def simple_cubic():
    return phonons.compute(bulk("Al", "sc", a=2.63), EMT(), supercell_matrix=DOUBLE, mesh_length=4 * 2.63)


@pytest.fixture(scope="module")
def fcc():
    return phonons.compute(bulk("Al", "fcc", a=3.99), EMT(), supercell_matrix=TRIPLE, mesh_length=6 * 2.3)


def energy(atoms):
    atoms = atoms.copy()
    atoms.calc = EMT()
    return atoms.get_potential_energy()


def test_energy_along_the_mode_is_that_of_its_frequency(simple_cubic):
    mode = phonons.softest_mode(simple_cubic, max_atoms=8)
    coordinate = 0.02 * np.sqrt(mode.atoms.get_masses().sum())  # displacements of 0.02 Å
    found = []
    for sign in (1, -1):
        moved = mode.atoms.copy()
        moved.positions += sign * coordinate * mode.displacements
        found.append(energy(moved) - energy(mode.atoms))
    expected = -0.5 * (mode.frequency / THZ) ** 2 * coordinate**2
    assert np.mean(found) == pytest.approx(expected, rel=0.02)  # of fourth order in 0.02 Å; phonons by 0.01 Å


def test_the_mode_is_the_lowest_and_fits_its_supercell(simple_cubic):
    mode = phonons.softest_mode(simple_cubic)
    assert mode.frequency == pytest.approx(simple_cubic.min_frequency, abs=0.01)
    assert np.allclose(mode.supercell_matrix @ mode.qpoint % 1, 0)
    assert np.linalg.det(mode.supercell_matrix @ simple_cubic.atoms.cell) > 0
    assert len(mode.atoms) == round(np.linalg.det(mode.supercell_matrix))
    assert (mode.atoms.get_masses()[:, None] * mode.displacements**2).sum() == pytest.approx(1)


def test_an_instability_at_the_zone_boundary_doubles_the_cell(simple_cubic):
    mode = phonons.softest_mode(simple_cubic, max_atoms=2)
    assert len(mode.atoms) == 2
    assert set(mode.qpoint) == {0, 0.5}
    assert np.allclose(mode.displacements[0], -mode.displacements[1])


def test_the_child_relaxes_to_lower_energy_and_repeats(simple_cubic):
    mode = phonons.softest_mode(simple_cubic, max_atoms=4)
    child, again = (phonons.displace(mode, EMT(), rng=np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(child.positions, again.positions)
    assert energy(child) < energy(mode.atoms)
    relaxed = relax(child, EMT(), fmax=0.02)
    assert relaxed.energy / len(child) < energy(simple_cubic.atoms) - 0.1


def test_a_stable_crystal_has_no_soft_mode(fcc):
    with pytest.raises(PhononError, match=r"no mode of Al below -0\.3 THz repeats in 32 atoms"):
        phonons.softest_mode(fcc)


def test_a_mode_that_raises_the_energy_is_refused(fcc):
    wave = phonons.softmode._standing_wave(fcc, np.array([0.5, 0.5, 0.0]), 2)
    with pytest.raises(PhononError, match=r"does not fall within 0\.01 Å along its mode of"):
        phonons.displace(wave, EMT(), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="rattle is -1"):
        phonons.displace(wave, EMT(), rng=np.random.default_rng(0), rattle=-1)


@pytest.mark.parametrize("temperature", [0.0, 50.0, 300.0])
def test_free_energy_is_the_sum_over_oscillators(fcc, temperature):
    found = phonons.harmonic_energy(fcc, temperature)
    quanta = PLANCK * fcc.frequencies
    weights = np.repeat(fcc.weights[:, None], 3, axis=1) / fcc.weights.sum()
    moves = fcc.frequencies > 1e-3  # not the acoustic modes at Gamma
    zero_point = (weights * quanta / 2)[moves].sum()
    thermal = 0.0
    if temperature:
        heat = units.kB * temperature
        thermal = (weights[moves] * heat * np.log1p(-np.exp(-quanta[moves] / heat))).sum()
    assert found.zero_point_energy == pytest.approx(zero_point, rel=1e-5)
    assert found.free_energy == pytest.approx(zero_point + thermal, rel=1e-5)


def test_an_unstable_crystal_has_no_free_energy(simple_cubic, fcc):
    with pytest.raises(PhononError, match=r"no free energy: the lowest frequency is -.* THz \(imaginary\), limit -0.3"):
        phonons.harmonic_energy(simple_cubic, 300.0)
    with pytest.raises(ValueError, match="temperature is -1"):
        phonons.harmonic_energy(fcc, -1.0)


def test_bands_are_the_frequencies_of_their_points_on_the_path_of_fcc(fcc, tmp_path):
    bands = phonons.band_structure(fcc, n_points=5)
    assert bands.ends[0] == ("GAMMA", "X")
    for qpoints, frequencies in zip(bands.qpoints, bands.frequencies, strict=True):
        assert np.allclose(fcc.phonon.run_qpoints(qpoints).frequencies, frequencies, atol=1e-6)
    assert np.abs(bands.frequencies[0][0]).max() < 1e-3
    x = bands.frequencies[0][-1]
    assert x[0] == pytest.approx(x[1], abs=1e-3)  # the transverse branches at X
    assert np.trapezoid(bands.dos, bands.dos_frequencies) == pytest.approx(3, rel=0.02)  # bands; a grid of 200 points
    phonons.plot_band_structure(bands, tmp_path / "bands.png", title="Al")
    assert (tmp_path / "bands.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="at least 2 points"):
        phonons.band_structure(fcc, n_points=1)
