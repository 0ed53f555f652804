"""Gupta potentials: values on paper, derivatives, symmetries, model files.

The parameters of Cu and Au in tests/data/bridge are published ones (Cleri and Rosato 1993), the tapers and the mixed
pair are invented for the tests.
"""

from dataclasses import replace
from math import cos, exp, pi, sin, sqrt
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.calculator import ReadError

from maise_bridge import GuptaModel, GuptaPotential, read_model, write_model
from maise_bridge.model_file import format_model
from maise_bridge.neighbors import NeighborListCache

DATA = Path(__file__).parents[1] / "data" / "bridge"
CU, CUAU = DATA / "cu_gupta.model", DATA / "cuau_gupta.model"
STRAINS = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]


@pytest.fixture(scope="module")
def potential():
    return GuptaPotential.from_file(CUAU)


@pytest.fixture
def alloy():
    """Six atoms of two species in a cell much smaller than the cutoff."""
    atoms = bulk("Cu", cubic=True, a=3.75) * (1, 1, 2)
    atoms = atoms[:6]
    atoms.symbols[[1, 2, 5]] = "Au"
    atoms.set_cell(atoms.cell.array + np.array([[0, 0.3, 0], [0.2, 0, 0.1], [0, -0.4, 0]]), scale_atoms=True)
    atoms.rattle(0.15, seed=1)
    return atoms


def cluster(seed=3):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid([0, 2.6], [0, 2.7], [0, 2.8]), axis=-1).reshape(-1, 3)
    return Atoms("CuAuCu2AuAuCuAu", grid + rng.normal(scale=0.1, size=(8, 3)))


def test_copper_has_the_published_cohesive_energy_at_its_lattice_constant():
    # Cleri and Rosato fitted 3.544 eV at 3.615 Å with neighbours up to the fifth shell, where the taper still is 1
    result = GuptaPotential.from_file(CU).evaluate([bulk("Cu", a=2.556 * sqrt(2))])[0]
    assert result.energy == pytest.approx(-3.544, abs=0.005)
    assert np.abs(result.stress).max() < 0.005  # 0.8 GPa: near the minimum


@pytest.mark.parametrize("distance", [2.4, 5.8, 6.0])
def test_dimer_has_the_energy_and_force_of_the_formula(distance):
    result = GuptaPotential.from_file(CU).evaluate([Atoms("Cu2", [[0, 0, 0], [0, 0, distance]])])[0]
    y, x = distance / 2.556 - 1, pi * max(0.0, distance - 5.8) / 0.3
    # on a single bond the root is B exp(-q y) cos(x / 2), as the taper is cos²(x / 2)
    repulsion, attraction = 0.0855 * exp(-10.96 * y), 1.224 * exp(-2.278 * y)
    energy = 2 * (repulsion * 0.5 * (1 + cos(x)) - attraction * cos(x / 2))
    slope = 2 * (
        repulsion * (-10.96 / 2.556 * 0.5 * (1 + cos(x)) - 0.5 * pi / 0.3 * sin(x))
        + attraction * (2.278 / 2.556 * cos(x / 2) + 0.5 * pi / 0.3 * sin(x / 2))
    )
    assert result.energy == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(result.forces, [[0, 0, slope], [0, 0, -slope]], atol=1e-12)
    assert result.stress is None
    assert result.virial[2] == pytest.approx(slope * distance, rel=1e-12)


def test_lone_atoms_and_atoms_beyond_the_cutoff_have_no_energy(potential):
    far = Atoms("CuAu", [[0, 0, 0], [0, 0, 6.4]])
    for result in potential.evaluate([Atoms("Cu"), far, Atoms("Au", cell=[20, 20, 20], pbc=True)]):
        assert result.energy == 0.0
        assert np.all(result.forces == 0.0)


def test_forces_and_virial_are_derivatives_of_the_energy(potential, alloy):
    def energy(atoms):
        return potential.evaluate([atoms], forces=False)[0].energy

    step = 1e-5
    for atoms in (alloy, cluster()):
        result = potential.evaluate([atoms])[0]
        for i, axis in ((0, 0), (1, 1), (4, 2)):
            ends = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[i, axis] += sign * step
                ends.append(energy(moved))
            assert result.forces[i, axis] == pytest.approx((ends[1] - ends[0]) / (2 * step), abs=1e-6)
        for voigt, (a, b) in enumerate(STRAINS):
            ends = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += 0.5 * sign * step
                strain[b, a] += 0.5 * sign * step
                strained = atoms.copy()
                strained.set_cell(atoms.cell.array @ strain)
                strained.positions = atoms.positions @ strain
                ends.append(energy(strained))
            assert result.virial[voigt] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=2e-6)
    np.testing.assert_allclose(
        potential.evaluate([alloy])[0].stress * alloy.get_volume(), potential.evaluate([alloy])[0].virial, rtol=1e-12
    )


def test_batch_equals_single_structures_whatever_their_kind(potential, alloy):
    slab = alloy.copy()
    slab.pbc = [True, True, False]
    structures = [alloy, cluster(), bulk("Au"), slab, Atoms("Cu")]
    for together, atoms in zip(potential.evaluate(structures), structures, strict=True):
        alone = potential.evaluate([atoms])[0]
        assert together.energy == pytest.approx(alone.energy, abs=1e-12)
        assert together.energies.sum() == pytest.approx(together.energy, abs=1e-12)
        np.testing.assert_allclose(together.forces, alone.forces, atol=1e-12)
        np.testing.assert_allclose(together.virial, alone.virial, atol=1e-11)
        assert together.forces.sum(0) == pytest.approx(np.zeros(3), abs=1e-11)
        assert together.extrapolation.tolist() == [0.0] * len(atoms)
        assert together.repulsion.tolist() == [0.0] * len(atoms)
    assert potential.evaluate([]) == []


def test_a_longer_neighbour_list_changes_nothing(potential, alloy):
    cache = NeighborListCache(potential.cutoff, skin=1.0)
    cache.get([alloy])
    alloy.positions[0] += 0.1
    result, expected = potential.evaluate([alloy], neighbors=cache.get([alloy]))[0], potential.evaluate([alloy])[0]
    assert cache.n_searches == 1
    assert result.energy == pytest.approx(expected.energy, abs=1e-12)
    np.testing.assert_allclose(result.forces, expected.forces, atol=1e-12)


def test_supercell_rotation_and_permutation(potential, alloy):
    result = potential.evaluate([alloy])[0]
    matrix = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 2]])
    large = potential.evaluate([make_supercell(alloy, matrix)])[0]
    assert large.energy == pytest.approx(2 * result.energy, abs=1e-11)
    np.testing.assert_allclose(large.stress, result.stress, atol=1e-13)
    rotated = alloy.copy()
    rotated.rotate(35, (1, 2, 3), rotate_cell=True)
    turned = potential.evaluate([rotated])[0]
    assert turned.energy == pytest.approx(result.energy, abs=1e-11)
    np.testing.assert_allclose(np.linalg.norm(turned.forces, axis=1), np.linalg.norm(result.forces, axis=1), atol=1e-11)
    order = [3, 0, 5, 1, 4, 2]
    permuted = potential.evaluate([alloy[order]])[0]
    np.testing.assert_allclose(permuted.forces, result.forces[order], atol=1e-12)
    np.testing.assert_allclose(permuted.energies, result.energies[order], atol=1e-12)


def test_an_alloy_model_contains_its_elements():
    single, mixed = GuptaPotential.from_file(CU), GuptaPotential.from_file(CUAU)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=4)
    assert mixed.cutoff == 6.4
    assert single.cutoff == 6.1
    assert mixed.evaluate([atoms])[0].energy == pytest.approx(single.evaluate([atoms])[0].energy, abs=1e-12)


def test_models_of_clusters_are_refused_for_crystals_only():
    model = GuptaModel.create(["Cu"], [[0.0855, 10.96, 1.224, 2.278, 2.556, 100.0, 110.0]])
    potential = GuptaPotential(model)
    assert potential.evaluate([cluster()[[0, 2, 3]]])[0].energy < 0
    film = bulk("Cu", cubic=True)
    film.pbc = [True, True, False]
    for crystal in (bulk("Cu"), film):
        with pytest.raises(ValueError, match=r"structure 1 \(Cu4?\) is periodic.*reaches 110 Å.*pbc=False"):
            potential.evaluate([Atoms("Cu"), crystal])


def test_other_species_and_networks_are_refused(potential):
    with pytest.raises(ValueError, match="structure has Si; the model covers Cu, Au"):
        potential.evaluate([bulk("Si")])
    with pytest.raises(ReadError, match=r"si\.model, line 2: expected a Gupta model"):
        GuptaPotential.from_file(DATA / "si.model")


@pytest.mark.parametrize("path", [CU, CUAU], ids=lambda path: path.stem)
def test_reading_and_writing_returns_every_byte(path, tmp_path):
    model = read_model(path)
    write_model(model, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert model.unique_id == model.info["model unique ID"]


def test_numbers_written_otherwise_stay_as_they_are(tmp_path):
    text = CU.read_text().replace("|  10.96   ", "|  1.09600e+1").replace("      |\n", "|\n", 1)
    assert text != CU.read_text()
    (tmp_path / "model").write_text(text)
    model = read_model(tmp_path / "model")
    assert format_model(model) == text
    changed = replace(model, parameters=model.parameters * [[1, 1, 2, 1, 1, 1, 1]])
    assert "|  B att (eV)   Cu      |  2.448 " in format_model(changed)
    assert "|  1.09600e+1" in format_model(changed)


def test_created_model_is_read_back(tmp_path):
    parameters = np.array(
        [[0.1, 10.0, 1.2, 2.5, 2.6, 5.0, 1 / 0.15], [1e-7, 9, 1, 2, 3, 0, 6], [0.2, 11, 1, 3, 3, 5, 7]]
    )
    model = GuptaModel.create(["Pd", "Ag"], parameters, info={"reference": "invented"})
    write_model(model, tmp_path / "model")
    again = read_model(tmp_path / "model")
    assert isinstance(again, GuptaModel)
    assert again.species == ("Pd", "Ag")
    assert again.parameters.tolist() == parameters.tolist()
    assert again.info["reference"] == "invented"
    assert "|  species names        |  Ag Pd " in format_model(replace(model, species=("Ag", "Pd")))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("|  number of species    |  2", "|  number of species    |  3", "line 6: expected 3 positive integer"),
        ("Cu Au   ", "Cu Ag   ", r"line 7: expected 1 to 2 symbols .*\(Cu, Au\), found .*Cu Ag"),
        ("|  species types ", "|  species typos ", "no entry 'species types'"),
        ("parameters", "paramaters", r"found the end of the file|line \d+: expected"),
        ("|  q att (Ang)  Cu   ", "|  Q att (Ang)  Cu   ", r"line 15: expected the entry 'q att \(Ang\) Cu', found"),
        ("|  10.96 ", "|  ten   ", r"line 13: expected a number as 'p rep \(Ang\) Cu', found"),
        ("|  10.96 ", "|  nan   ", r"line 13: expected a number as 'p rep \(Ang\) Cu', found"),
        ("|  2.72 ", "|  0.00 ", "line 23: expected a positive r0, found"),
        ("|  6.25 ", "|  5.90 ", r"line 25: expected an Rmax above Rmin \(5.9 Å\), found"),
    ],
)
def test_damaged_files_are_refused_naming_file_and_line(old, new, message, tmp_path):
    text = CUAU.read_text()
    assert old in text
    (tmp_path / "bad.model").write_text(text.replace(old, new, 1))
    with pytest.raises(ReadError, match=rf"bad\.model.*({message})"):
        read_model(tmp_path / "bad.model")


@pytest.mark.parametrize("n_lines", [0, 1, 2, 5, 9, 10, 11, 18, 32])
def test_truncated_files_are_refused(n_lines, tmp_path):
    (tmp_path / "model").write_text("".join(CUAU.read_text().splitlines(keepends=True)[:n_lines]))
    with pytest.raises(ReadError, match=rf"model, line {n_lines + 1}: expected .*found the end of the file"):
        read_model(tmp_path / "model")


def test_lines_after_the_parameters_are_refused(tmp_path):
    (tmp_path / "model").write_text(CU.read_text() + "more\n")
    with pytest.raises(ReadError, match="line 20: expected nothing after the parameters, found 'more'"):
        read_model(tmp_path / "model")


def test_inconsistent_models_are_refused_and_nothing_written(tmp_path):
    row = [0.1, 10, 1.2, 2.5, 2.6, 5, 6]
    with pytest.raises(ValueError, match=r"shape \(1, 7\), expected \(3, 7\)"):
        GuptaModel.create(["Cu", "Ag"], [row])
    with pytest.raises(ValueError, match=r"'Rmax \(Ang\) Cu' is 5.0, expected an Rmax above"):
        GuptaModel.create(["Cu"], [[*row[:6], 5]])
    with pytest.raises(ValueError, match="1 or 2 different"):
        GuptaModel.create(["Cu", "Cu"], [row] * 3)
    with pytest.raises(ValueError, match="'Qq' is no chemical element"):
        GuptaModel.create(["Qq"], [row])
    with pytest.raises(ValueError, match="unknown header entry 'colour'"):
        GuptaModel.create(["Cu"], [row], info={"colour": "red"})
    model = GuptaModel.create(["Cu"], [row])
    with pytest.raises(ValueError, match="not finite"):
        write_model(replace(model, parameters=model.parameters * np.nan), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
