import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, make_supercell
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.geometry import minkowski_reduce

from ase_hvae import phonons
from ase_hvae.data import load_known
from ase_hvae.errors import PhononError, StructureError
from ase_hvae.phonons.harmonic import logged_warnings
from ase_hvae.symmetry import rotations

THZ = np.sqrt(units._e / units._amu) * 1e10 / (2 * np.pi) / 1e12  # of sqrt(eV/Å²/amu)
TRIPLE = 3 * np.eye(3, dtype=int)


def shortest(cell):
    return np.linalg.norm(minkowski_reduce(cell)[0], axis=1).min()


# EMT aluminium, 3x3x3 supercell, 8x8x8 mesh, computed with phonopy alone.
@pytest.mark.parametrize(
    ("crystal", "mesh_length", "lowest", "highest", "stable"),
    [
        (bulk("Al", "fcc", a=3.99), 8 * 3.99 / np.sqrt(3), 0.0, 8.52, True),
        (bulk("Al", "sc", a=2.63), 8 * 2.63, -3.90, None, False),
    ],
)
def test_aluminium_is_stable_as_fcc_and_not_as_simple_cubic(crystal, mesh_length, lowest, highest, stable):
    result = phonons.compute(crystal, EMT(), supercell_matrix=TRIPLE, mesh_length=mesh_length)
    assert result.stable is stable
    assert result.weights.sum() == 512
    assert result.min_frequency == pytest.approx(lowest, abs=0.01)
    if highest:
        assert result.max_frequency == pytest.approx(highest, abs=0.01)


def test_frequencies_are_those_of_the_hessian_of_the_supercell():
    crystal = bulk("Cu", "fcc", a=3.59)
    result = phonons.compute(crystal, EMT(), supercell_matrix=2 * np.eye(3, dtype=int), mesh_length=2 * 3.59 / 1.732)
    supercell = crystal * (2, 2, 2)
    supercell.calc = EMT()
    hessian = np.zeros((24, 24))
    for i in range(24):
        for sign in (1, -1):
            moved = supercell.positions.copy()
            moved.flat[i] += sign * 0.01
            atoms = supercell.copy()
            atoms.positions = moved
            atoms.calc = supercell.calc
            hessian[i] -= sign * atoms.get_forces().ravel() / 0.02
    eigenvalues = np.linalg.eigvalsh((hessian + hessian.T) / 2) / supercell.get_masses()[0]
    expected = np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) * THZ
    found = np.sort(np.repeat(result.frequencies, result.weights, axis=0).ravel())
    # The Hessian does not obey the sum rule exactly: acoustic modes at Gamma are noise of 0.01 THz.
    assert np.allclose(found, expected, atol=0.02)


def test_acoustic_modes_vanish_at_gamma():
    result = phonons.compute(bulk("Cu", "hcp", a=2.54, c=4.15), EMT(), min_length=7, max_force=1.0)
    assert np.array_equal(result.qpoints[0], [0, 0, 0])
    assert np.abs(result.frequencies[0, :3]).max() < 1e-5
    assert result.frequencies[0, 3:].min() > 1.0


def test_result_does_not_depend_on_the_cell_and_input_is_kept():
    crystal = bulk("Cu", "fcc", a=3.59)
    other = make_supercell(crystal, [[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    other.rotate(33, (1, 1, 2), rotate_cell=True)
    before = other.copy()
    results = [phonons.compute(atoms, EMT(), min_length=7, mesh_length=20) for atoms in (crystal, other)]
    assert results[0].max_frequency == pytest.approx(results[1].max_frequency, abs=1e-4)
    assert results[0].frequencies.shape == results[1].frequencies.shape
    assert np.array_equal(other.positions, before.positions)
    assert other.calc is None


@pytest.mark.parametrize("name", ["diamond", "lonsdaleite", "9R", "M-Si", "D76", "beta-Sn", "bcc", "P6222-Si3", "I926"])
def test_supercell_is_long_symmetric_and_right_handed(name):
    crystal = next(atoms for atoms in load_known() if atoms.info["name"] == name)
    matrix = phonons.choose_supercell(crystal, 10.0)
    assert matrix.dtype.kind == "i"
    assert np.linalg.det(matrix) > 0
    assert shortest(matrix @ crystal.cell) >= 10.0
    for rotation in rotations(crystal):
        image = matrix @ rotation.T @ np.linalg.inv(matrix)
        assert np.allclose(image, np.round(image), atol=1e-6)


def test_supercell_is_the_smallest_multiple_of_a_cube():
    assert abs(np.linalg.det(phonons.choose_supercell(bulk("Po", "sc", a=3.0), 6.5))) == pytest.approx(16)  # bcc, 7.8 Å
    assert abs(np.linalg.det(phonons.choose_supercell(bulk("Si", "diamond", a=5.43), 10.0))) == pytest.approx(27)


def test_supercell_of_a_skewed_cell_is_not_skewed():
    atoms = Atoms("Cu", cell=[[2.5, 0, 0], [11.2, 2.6, 0], [-7.3, 9.1, 2.7]], pbc=True)
    matrix = phonons.choose_supercell(atoms, 7.0)
    assert shortest(matrix @ atoms.cell) >= 7.0
    assert abs(np.linalg.det(matrix)) <= 27


def test_supercell_is_a_single_cell_when_that_is_long_enough():
    crystal = next(atoms for atoms in load_known() if atoms.info["name"] == "clathrate-I")
    assert round(np.linalg.det(phonons.choose_supercell(crystal, 10.0))) == 1


def test_bad_input_is_refused():
    crystal = bulk("Cu", "fcc", a=3.59)
    with pytest.raises(ValueError, match="displacement is 0; it must be a positive length"):
        phonons.compute(crystal, EMT(), displacement=0)
    with pytest.raises(ValueError, match="supercell_matrix must hold three right-handed integer rows"):
        phonons.compute(crystal, EMT(), supercell_matrix=-TRIPLE)
    with pytest.raises(PhononError, match="images 100 Å apart needs more than 2000 atoms; lower min_length"):
        phonons.compute(crystal, EMT(), min_length=100)
    unrelaxed = bulk("Cu", cubic=True)
    unrelaxed.positions[0, 0] += 0.2
    with pytest.raises(PhononError, match="crystal is not relaxed: largest force"):
        phonons.compute(unrelaxed, EMT(), min_length=5)
    crystal.positions[0, 0] = np.nan
    with pytest.raises(StructureError, match="structure for phonons has a non-finite position"):
        phonons.compute(crystal, EMT())


def test_non_finite_forces_fail_the_calculation():
    class Broken(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["forces"] = self.results["forces"] * np.nan

    with pytest.raises(CalculationFailed, match="non-finite forces for the supercell"):
        phonons.compute(bulk("Cu", "fcc", a=3.59), Broken(), min_length=5)


def test_warnings_of_phonopy_go_to_the_log(caplog):
    with caplog.at_level("INFO", logger="ase_hvae"), logged_warnings():
        warnings.warn("mesh is\n generalized", stacklevel=1)
    assert caplog.messages == ["phonopy: mesh is generalized"]
