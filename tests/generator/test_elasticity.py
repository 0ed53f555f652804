import dataclasses

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from pymatgen.analysis.elasticity.elastic import ElasticTensor
from scipy.linalg import sqrtm
from scipy.spatial.transform import Rotation

from ase_hvae import elasticity
from ase_hvae.errors import ElasticityError, StructureError
from ase_hvae.symmetry import cartesian_rotations
from maise_bridge import MaiseCalculator

VOIGT = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
# Measured at zero temperature (Simmons and Wang 1971), GPa: copper.
COPPER = np.diag([176.2, 176.2, 176.2, 81.8, 81.8, 81.8]) + np.pad(124.9 * (1 - np.eye(3)), (0, 3))


class Wrong(Calculator):
    """EMT that fails, or returns a value that is not finite, for any cell but one of the given volume."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, volume, bad):
        super().__init__()
        self.volume, self.bad, self.emt = volume, bad, EMT()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {
            "energy": self.emt.get_potential_energy(atoms),
            "forces": self.emt.get_forces(atoms),
            "stress": self.emt.get_stress(atoms),
        }
        if abs(atoms.cell.volume - self.volume) > 1e-9:
            if self.bad == "crash":
                raise CalculationFailed("killed by signal 11")
            self.results[self.bad] = np.full_like(self.results[self.bad], np.nan)


def relaxed(atoms, calc, fmax=1e-5, *, hydrostatic=False):
    atoms = atoms.copy()
    atoms.calc = calc
    BFGS(FrechetCellFilter(atoms, hydrostatic_strain=hydrostatic), logfile=None).run(fmax=fmax, steps=300)
    atoms.calc = None
    return atoms


def energy(atoms, deformation):
    strained = atoms.copy()
    strained.set_cell(strained.cell[:] @ deformation.T, scale_atoms=True)
    strained.calc = EMT()
    return strained.get_potential_energy()


def lagrangian_second_derivatives(atoms, h):
    """Second derivatives of the energy by the Lagrangian strain over the volume, clamped ions; eV/Å³."""

    def at(vector):
        eta = np.zeros((3, 3))
        for value, (i, j) in zip(vector, VOIGT, strict=True):
            eta[i, j] += value / 2
            eta[j, i] += value / 2
        return energy(atoms, np.real(sqrtm(np.eye(3) + 2 * eta)))

    steps = h * np.eye(6)
    found = np.zeros((6, 6))
    for i in range(6):
        for j in range(i, 6):
            signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
            values = [a * b * at(a * steps[i] + b * steps[j]) for a, b in signs]
            found[i, j] = found[j, i] = sum(values) / (4 * h**2)
    return found / atoms.cell.volume


@pytest.fixture(scope="module")
def copper():
    return relaxed(bulk("Cu"), EMT())


@pytest.fixture(scope="module")
def hcp():
    return relaxed(bulk("Cu", "hcp", a=2.54, c=4.15), EMT())


@pytest.mark.parametrize(("symbol", "a"), [("Al", 3.99), ("Cu", 3.59)])
def test_cubic_crystals_have_three_constants_and_the_bulk_modulus_of_the_equation_of_state(symbol, a):
    crystal = relaxed(bulk(symbol, a=a), EMT())
    result = elasticity.compute(crystal, EMT())
    c11, c12, c44 = result.tensor[0, 0], result.tensor[0, 1], result.tensor[3, 3]
    expected = np.diag([c11 - c12] * 3 + [c44] * 3) + np.pad(np.full((3, 3), c12), (0, 3))
    assert np.allclose(result.unsymmetrized, expected, atol=1e-9)  # EMT has the symmetry to rounding
    assert result.residual < 1e-9
    volumes = crystal.cell.volume * np.linspace(0.97, 1.03, 7)
    energies = [energy(crystal, np.eye(3) * (v / crystal.cell.volume) ** (1 / 3)) for v in volumes]
    modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit(warn=False)[2]
    assert (c11 + 2 * c12) / 3 == pytest.approx(modulus, rel=2e-3)  # a fit over 6 % of volume is not better
    assert result.moduli.bulk_h == pytest.approx((c11 + 2 * c12) / 3, rel=1e-12)
    assert result.stable
    assert result.violation == ""
    assert np.allclose(result.eigenvalues, np.sort([c11 - c12] * 2 + [c11 + 2 * c12] + [2 * c44] * 3), atol=1e-9)


def test_shear_constant_is_the_curvature_of_the_energy(copper):
    result = elasticity.compute(copper, EMT(), strains=(0.0025, 0.005))
    h = 0.004
    shears = [np.array([[1, g / 2, 0], [g / 2, 1, 0], [0, 0, 1 / (1 - g**2 / 4)]]) for g in (-h, 0, h)]  # one volume
    low, middle, high = (energy(copper, shear) for shear in shears)
    assert (low - 2 * middle + high) / (h**2 * copper.cell.volume) == pytest.approx(result.tensor[5, 5], rel=1e-4)


@pytest.mark.parametrize("compression", [1.0, 0.97, 1.02])
def test_energy_and_stress_give_one_tensor_at_any_pressure(copper, compression):
    crystal = copper.copy()
    crystal.set_cell(crystal.cell * compression, scale_atoms=True)
    result = elasticity.compute(crystal, EMT(), strains=(0.002, 0.004))
    assert (result.pressure > 0.01) == (compression < 1)
    # Plain second differences err by the square of their step, 7e-4 of C11; the pressure's part is 6e-2.
    expected = lagrangian_second_derivatives(crystal, 0.002)
    assert np.allclose(result.energy_tensor, expected, atol=1e-3 * np.abs(expected).max())
    if compression == 1.0:
        assert np.allclose(result.tensor, result.energy_tensor, atol=1e-6)


def test_under_pressure_the_tensor_holds_the_bulk_modulus(copper):
    crystal = copper.copy()
    crystal.set_cell(crystal.cell * 0.96, scale_atoms=True)
    result = elasticity.compute(crystal, EMT(), strains=(0.002, 0.004))
    h = 1e-3
    pressures = []
    for factor in (1 - h, 1 + h):
        scaled = crystal.copy()
        scaled.set_cell(scaled.cell * factor ** (1 / 3), scale_atoms=True)
        scaled.calc = EMT()
        pressures.append(-scaled.get_stress()[:3].mean())
    assert result.pressure > 0.1
    assert result.moduli.bulk_h == pytest.approx((pressures[0] - pressures[1]) / (2 * h), rel=1e-4)


def test_hexagonal_crystals_have_five_constants(hcp):
    result = elasticity.compute(hcp, EMT(), strains=(0.005, 0.01))
    c = result.unsymmetrized  # nothing is imposed on it
    atol = 2e-4 * c.max()
    assert c[5, 5] == pytest.approx((c[0, 0] - c[0, 1]) / 2, abs=atol)
    assert [c[0, 0], c[0, 2], c[3, 3]] == pytest.approx([c[1, 1], c[1, 2], c[4, 4]], abs=atol)
    assert np.allclose(c, c.T, atol=atol)
    assert np.allclose(result.tensor, c, atol=atol)
    assert result.residual == np.abs(result.tensor - c).max()


def test_relaxed_ions_are_softer_and_internal_strain_explains_by_how_much(hcp):
    result = elasticity.compute(hcp, EMT(), fmax=1e-5)
    clamped = elasticity.compute(hcp, EMT(), relax_ions=False)
    assert np.linalg.eigvalsh(clamped.tensor - result.tensor).min() > -1e-4
    assert clamped.n_evaluations == 13
    # C - C_clamped = -Lambda K^-1 Lambda^T / V, with forces per strain and per displacement from finite differences.
    h, forces = 1e-3, {}
    for name, rows in (("strain", np.eye(6)), ("move", np.eye(3))):
        for k, row in enumerate(rows):
            for sign in (1, -1):
                atoms = hcp.copy()
                if name == "strain":
                    strain = sum(row[v] * (np.eye(3)[[i]].T @ np.eye(3)[[j]]) for v, (i, j) in enumerate(VOIGT))
                    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + sign * h * (strain + strain.T) / 2), scale_atoms=True)
                else:
                    atoms.positions[1] += sign * h * row
                atoms.calc = EMT()
                forces[name, k, sign] = atoms.get_forces()[1]
    coupling = np.array([(forces["strain", k, 1] - forces["strain", k, -1]) / (2 * h) for k in range(6)])
    stiffness = -np.array([(forces["move", k, 1] - forces["move", k, -1]) / (2 * h) for k in range(3)])
    expected = coupling @ np.linalg.inv(stiffness) @ coupling.T / hcp.cell.volume
    assert expected.max() > 0.05
    assert np.allclose(clamped.tensor - result.tensor, expected, atol=2e-3 * expected.max())


def test_a_turned_crystal_has_the_turned_tensor(hcp):
    rotation = Rotation.from_euler("xyz", [25, -40, 70], degrees=True).as_matrix()
    turned = hcp.copy()
    turned.set_cell(hcp.cell[:] @ rotation.T, scale_atoms=True)
    a, b = (elasticity.compute(atoms, EMT(), relax_ions=False) for atoms in (hcp, turned))
    # Strains along other axes leave other errors of second order.
    assert np.allclose(b.tensor, elasticity.rotate_tensor(a.tensor, rotation), atol=2e-4 * a.tensor.max())
    assert np.allclose(b.eigenvalues, a.eigenvalues, atol=4e-4 * a.tensor.max())
    for name, value in dataclasses.asdict(a.moduli).items():
        assert getattr(b.moduli, name) == pytest.approx(value, rel=2e-3, abs=1e-3)
    assert b.debye_temperature == pytest.approx(a.debye_temperature, rel=1e-3)


def test_rotations_of_a_tensor_are_those_of_pymatgen_and_compose():
    rng = np.random.default_rng(3)
    tensor = rng.normal(size=(6, 6))
    tensor = tensor + tensor.T
    first, second = Rotation.random(2, rng=rng).as_matrix()
    expected = ElasticTensor.from_voigt(tensor).rotate(first, tol=1e-6).voigt
    assert np.allclose(elasticity.rotate_tensor(tensor, first), expected, atol=1e-12)
    twice = elasticity.rotate_tensor(elasticity.rotate_tensor(tensor, first), second)
    assert np.allclose(elasticity.rotate_tensor(tensor, second @ first), twice, atol=1e-12)


def test_tensor_does_not_depend_on_the_cell_and_input_is_kept(copper):
    supercell = copper * (2, 1, 1)
    before = supercell.positions.copy()
    a, b = (elasticity.compute(atoms, EMT()) for atoms in (copper, supercell))
    assert np.allclose(a.tensor, b.tensor, atol=1e-4 * a.tensor.max())  # ions of the supercell are relaxed to fmax
    assert np.array_equal(supercell.positions, before)
    assert supercell.calc is None


def test_simple_cubic_aluminium_fails_born_by_shear():
    crystal = relaxed(bulk("Al", "sc", a=2.63), EMT(), fmax=1e-4, hydrostatic=True)
    result = elasticity.compute(crystal, EMT())
    assert not result.stable
    assert result.moduli is None
    assert result.debye_temperature is None
    assert np.count_nonzero(result.eigenvalues < 0) == 3  # 2 C44
    assert result.eigenvalues[0] == pytest.approx(2 * result.tensor[3, 3], abs=1e-9)
    assert result.violation.startswith("3 of 6 elastic eigenvalues not above 0.8 GPa: -20.7, -20.7, -20.7 GPa")
    assert np.allclose(np.diag(result.soft_strain), 0, atol=1e-6)
    h = 0.01  # the energy goes down along the strain that the result names
    sheared = [energy(crystal, np.eye(3) + sign * h * result.soft_strain) for sign in (1, -1)]
    assert max(sheared) < energy(crystal, np.eye(3))
    with pytest.raises(ElasticityError, match=r"eigenvalue -20\.7 GPa; only a positive definite one has moduli"):
        elasticity.moduli(result.tensor)


def mouhat_coudert(c, system):
    """Closed forms of Mouhat and Coudert (2014); necessary and sufficient."""
    c11, c12, c13, c33, c44, c66 = c[0, 0], c[0, 1], c[0, 2], c[2, 2], c[3, 3], c[5, 5]
    if system == "cubic":
        return c11 - c12 > 0 and c11 + 2 * c12 > 0 and c44 > 0
    if system == "orthorhombic":
        c22, c23, c55 = c[1, 1], c[1, 2], c[4, 4]
        determinant = c11 * c22 * c33 + 2 * c12 * c13 * c23 - c11 * c23**2 - c22 * c13**2 - c33 * c12**2
        return min(c11, c44, c55, c66) > 0 and c11 * c22 > c12**2 and determinant > 0
    plane = c11 > abs(c12) and 2 * c13**2 < c33 * (c11 + c12)
    c14, c15, c16 = c[0, 3], c[0, 4], c[0, 5]
    if system == "tetragonal":
        return plane and c44 > 0 and 2 * c16**2 < c66 * (c11 - c12)
    return plane and c44 > 0 and c14**2 + c15**2 < c44 * (c11 - c12) / 2  # trigonal; hexagonal with c14 = c15 = 0


GENERATORS = {
    "cubic": [([1, 1, 1], 120), ([0, 0, 1], 90)],
    "hexagonal": [([0, 0, 1], 60)],
    "trigonal": [([0, 0, 1], 120)],
    "tetragonal": [([0, 0, 1], 90)],
    "orthorhombic": [([0, 0, 1], 180), ([1, 0, 0], 180)],
}


@pytest.mark.parametrize("system", GENERATORS)
def test_positive_eigenvalues_are_borns_criteria(system):
    turns = [np.deg2rad(a) * np.array(axis) / np.linalg.norm(axis) for axis, a in GENERATORS[system]]
    group = [np.eye(3)]
    while True:  # products until the group is closed
        products = [Rotation.from_rotvec(turn).as_matrix() @ q for turn in turns for q in group]
        fresh = [p for p in products if not any(np.allclose(p, q, atol=1e-6) for q in group)]
        if not fresh:
            break
        group.append(fresh[0])
    rng = np.random.default_rng(4)
    verdicts = []
    for _ in range(300):
        tensor = rng.normal(size=(6, 6)) + 0.7 * np.eye(6)
        tensor = elasticity.symmetrize_tensor(tensor + tensor.T, np.array(group))
        verdicts.append(bool(elasticity.stability(tensor)[0][0] > 0))
        assert verdicts[-1] == bool(mouhat_coudert(tensor, system))
        assert verdicts[-1] == bool(np.linalg.eigvalsh(tensor)[0] > 0)  # Voigt's matrix has the same signs
    assert 10 < sum(verdicts) < 290


def test_symmetrizing_is_a_projection(hcp):
    group = cartesian_rotations(hcp)
    rng = np.random.default_rng(5)
    once = elasticity.symmetrize_tensor(rng.normal(size=(6, 6)), group)
    assert np.allclose(elasticity.symmetrize_tensor(once, group), once, atol=1e-12)
    for rotation in group:
        assert np.allclose(elasticity.rotate_tensor(once, rotation), once, atol=1e-12)


def test_moduli_are_those_of_pymatgen_and_bound_one_another():
    rng = np.random.default_rng(6)
    for _ in range(20):
        root = rng.normal(size=(6, 6))
        tensor = root @ root.T + 0.5 * np.eye(6)
        found = elasticity.moduli(tensor)
        other = ElasticTensor.from_voigt(tensor)
        assert [found.bulk_v, found.bulk_r, found.bulk_h] == pytest.approx([other.k_voigt, other.k_reuss, other.k_vrh])
        assert [found.shear_v, found.shear_r, found.shear_h] == pytest.approx(
            [other.g_voigt, other.g_reuss, other.g_vrh]
        )
        assert found.young_h == pytest.approx(other.y_mod / 1e9)  # pymatgen takes the tensor to be in GPa
        assert found.poisson_h == pytest.approx(other.homogeneous_poisson)
        assert found.universal_anisotropy == pytest.approx(other.universal_anisotropy)
        for name in ("bulk", "shear", "young"):
            reuss, hill, voigt = (getattr(found, f"{name}_{letter}") for letter in "rhv")
            assert reuss <= hill <= voigt


def test_isotropic_tensor_has_its_lame_moduli_and_no_anisotropy():
    bulk_modulus, shear = 0.5, 0.3
    tensor = np.diag([2.0, 2, 2, 1, 1, 1]) * shear
    tensor[:3, :3] += bulk_modulus - 2 / 3 * shear
    found = elasticity.moduli(tensor)
    assert [found.bulk_v, found.bulk_r, found.shear_v, found.shear_r] == pytest.approx([0.5, 0.5, 0.3, 0.3])
    assert found.universal_anisotropy == pytest.approx(0, abs=1e-12)
    assert found.young_h == pytest.approx(2 * shear * (1 + found.poisson_h))


def test_debye_temperature_of_copper_is_near_the_measured_one():
    # 344 K from the sound of all directions and from the heat capacity; Hill's average is 2 % higher (352 K by hand).
    averages = elasticity.moduli(COPPER * units.GPa)
    assert elasticity.debye_temperature(bulk("Cu", a=3.603), averages) == pytest.approx(344, rel=0.03)


def test_shipped_silicon_potential_makes_diamond_as_stiff_as_pbe():
    # PBE: C11 152, C12 57, C44 73 GPa (relaxed ions). The potential has 149, 59, 71.
    calc = MaiseCalculator(model="silicon")
    crystal = relaxed(bulk("Si", a=5.47), calc, fmax=1e-4)
    result = elasticity.compute(crystal, calc)
    constants = np.array([result.tensor[0, 0], result.tensor[0, 1], result.tensor[3, 3]]) / units.GPa
    assert result.stable
    np.testing.assert_allclose(constants, [152, 57, 73], rtol=0.07)
    assert result.moduli.bulk_h / units.GPa == pytest.approx(89, rel=0.05)


def test_failing_calculators_are_elasticity_errors(copper):
    volume = copper.cell.volume
    with pytest.raises(ElasticityError, match=r"strain xx \+0.005: calculator failed: killed by signal 11"):
        elasticity.compute(copper, Wrong(volume, "crash"))
    with pytest.raises(ElasticityError, match=r"strain xx \+0.005: calculator returned a non-finite stress for Cu"):
        elasticity.compute(copper, Wrong(volume, "stress"))
    with pytest.raises(ElasticityError, match=r"strain xx \+0.005: calculator returned a non-finite forces for Cu"):
        elasticity.compute(copper, Wrong(volume, "forces"))

    class NoStress(LennardJones):
        implemented_properties = ("energy", "forces")

    with pytest.raises(ElasticityError, match="NoStress has no stress; choose another"):
        elasticity.compute(bulk("Ar"), NoStress(sigma=3.4, epsilon=0.01, rc=8), relax_ions=False)


def test_crystals_that_are_not_relaxed_are_refused(copper, hcp):
    strained = copper.copy()
    strained.set_cell(copper.cell[:] @ np.diag([1.03, 1, 1]), scale_atoms=True)
    with pytest.raises(ElasticityError, match=r"stress differs from a hydrostatic one by 0\.0\d+ eV/Å³, limit 0.005"):
        elasticity.compute(strained, EMT())
    moved = hcp.copy()
    moved.positions[1] += [0.1, 0, 0]
    with pytest.raises(ElasticityError, match=r"not relaxed: largest force \d\.\d+ eV/Å, limit 0.1; relax it first"):
        elasticity.compute(moved, EMT())
    with pytest.raises(ElasticityError, match=r"ions not relaxed to 1e-12 eV/Å in 2 steps; raise max_steps"):
        elasticity.compute(hcp, EMT(), fmax=1e-12, max_steps=2)
    shaken = bulk("Al", "sc", a=2.63) * (2, 2, 2)  # a saddle point for its ions
    shaken.rattle(0.002, seed=1)
    with pytest.raises(ElasticityError, match=r"unstrained: an ion moved by 0\.5\d+ Å, limit 0\.5"):
        elasticity.compute(shaken, EMT())


def test_other_bad_input_is_refused(copper):
    for strains in ((), (0.0,), (-0.01,), (0.1,), (np.nan,)):
        with pytest.raises(ValueError, match=r"they must lie above 0 and at most 0\.05"):
            elasticity.compute(copper, EMT(), strains=strains)
    with pytest.raises(ValueError, match="too close to one another"):
        elasticity.compute(copper, EMT(), strains=(0.005, 0.005))
    with pytest.raises(ValueError, match="fmax is 0; it must be a positive force"):
        elasticity.compute(copper, EMT(), fmax=0)
    with pytest.raises(ValueError, match="max_steps is 0; at least one step"):
        elasticity.compute(copper, EMT(), max_steps=0)
    with pytest.raises(ValueError, match="tolerance is -1; it must be finite and not negative"):
        elasticity.compute(copper, EMT(), tolerance=-1)
    broken = copper.copy()
    broken.positions[0, 0] = np.nan
    with pytest.raises(StructureError, match="structure for the elastic tensor has a non-finite position"):
        elasticity.compute(broken, EMT())
    with pytest.raises(ElasticityError, match="elastic tensor is not finite"):
        elasticity.moduli(np.full((6, 6), np.nan))
