import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell

from ase_hvae import symmetry
from ase_hvae.errors import StructureError, SymmetryError


@pytest.fixture
def diamond():
    return bulk("Si", "diamond", a=5.43)


def zincblende():
    return bulk("GaAs", "zincblende", a=5.65)


def hexagonal_polytype():
    """4H silicon, two orbits."""
    sites = [(14, (2 / 3, 1 / 3, 0.65592)), (14, (0, 0, 0.90680))]
    return symmetry.build_crystal(488, (3.86, 3.86, 12.68, 90, 90, 120), sites)


@pytest.mark.parametrize(
    ("hall_number", "order"),
    [(1, 1), (2, 2), (525, 192), (488, 24), (458, 36), (530, 96)],  # International Tables: P1, P-1, Fd-3m, ...
)
def test_operations_have_the_tabulated_order(hall_number, order):
    rotations, translations = symmetry.operations(hall_number)
    assert rotations.shape == (order, 3, 3)
    assert translations.shape == (order, 3)
    assert np.all(np.abs(np.round(np.linalg.det(rotations))) == 1)


def test_operations_form_a_group():
    rotations, translations = symmetry.operations(502)
    known = {(*r.ravel(), *np.round(t * 24).astype(int) % 24) for r, t in zip(rotations, translations, strict=True)}
    for r, t in zip(rotations[:20], translations[:20], strict=True):
        products = {
            (*(r @ s).ravel(), *np.round((r @ u + t) * 24).astype(int) % 24)
            for s, u in zip(rotations, translations, strict=True)
        }
        assert products == known


def test_operations_refuse_an_unknown_setting():
    with pytest.raises(ValueError, match="hall_number is 531; it must lie between 1 and 530"):
        symmetry.operations(531)


def test_build_crystal_makes_bc8_with_sixteen_atoms():
    atoms = symmetry.build_crystal(502, (6.636, 6.636, 6.636, 90, 90, 90), [(14, (0.1003, 0.1003, 0.1003))])
    assert len(atoms) == 16
    assert symmetry.wyckoff_sites(atoms) == (206, ("16c",))


def test_build_crystal_moves_rounded_coordinates_onto_the_special_position():
    atoms = symmetry.build_crystal(488, (3.86, 3.86, 12.68, 90, 90, 120), [(14, (0.6667, 0.3333, 0.65592))])
    assert len(atoms) == 4
    assert symmetry.space_group(atoms, symprec=1e-8).number == 194


def test_build_crystal_refuses_a_lattice_without_the_symmetry():
    with pytest.raises(SymmetryError, match="lattice does not have the symmetry of hall_number 525"):
        symmetry.build_crystal(525, (5.4, 5.4, 5.9, 90, 90, 90), [(14, (0, 0, 0))])


def test_space_group_of_diamond(diamond):
    info = symmetry.space_group(diamond)
    assert (info.number, info.symbol, info.point_group) == (227, "Fd-3m", "m-3m")
    assert info.wyckoff_letters[0] in "ab"  # 8a and 8b differ by the choice of origin
    assert (info.n_primitive, info.n_operations) == (2, 48)


def test_wyckoff_sites_name_every_element():
    info = symmetry.space_group(zincblende())
    assert info.number == 216
    assert [symbol for symbol, _ in info.wyckoff_sites] == ["As", "Ga"]
    assert all(position[:-1] == "4" for _, position in info.wyckoff_sites)


@pytest.mark.parametrize("crystal", [bulk("Si", "diamond", a=5.43), zincblende(), hexagonal_polytype(), bulk("Mg")])
def test_space_group_does_not_depend_on_cell_rotation_or_order(crystal):
    rng = np.random.default_rng(1)
    other = make_supercell(crystal, [[1, 1, 0], [0, 1, 0], [0, 1, 2]])
    other.rotate(37.0, (1, 2, 3), rotate_cell=True)
    other = other[rng.permutation(len(other))]
    other.positions += rng.normal(size=3)
    first, second = symmetry.space_group(crystal), symmetry.space_group(other)
    assert first.number == second.number
    assert first.n_operations == second.n_operations
    assert first.n_primitive == second.n_primitive
    assert [site[:-1] for _, site in first.wyckoff_sites] == [site[:-1] for _, site in second.wyckoff_sites]


def test_primitive_undoes_a_supercell_and_keeps_volume_and_info(diamond):
    supercell = diamond * (2, 1, 3)
    supercell.info["name"] = "kept"
    small = symmetry.primitive(supercell)
    assert len(small) == 2
    assert small.info["name"] == "kept"
    assert small.cell.volume == pytest.approx(diamond.cell.volume, rel=1e-9)
    assert len(supercell) == 12


@pytest.mark.parametrize("crystal", [bulk("Si", "diamond", a=5.43), zincblende(), hexagonal_polytype(), bulk("Mg")])
def test_symmetrize_recovers_the_space_group_of_a_rattled_crystal(crystal):
    expected = symmetry.space_group(crystal)
    rattled = crystal * (2, 1, 1)
    rattled.rattle(0.01, seed=3)
    assert symmetry.space_group(rattled, symprec=1e-4).number < expected.number
    before = rattled.positions.copy()
    result = symmetry.symmetrize(rattled, symprec=0.1)
    assert (result.number, result.symbol) == (expected.number, expected.symbol)
    assert len(result.atoms) == expected.n_primitive
    assert np.linalg.det(result.atoms.cell) > 0
    assert symmetry.space_group(result.atoms, symprec=1e-6).number == expected.number
    assert np.array_equal(rattled.positions, before)


def test_symmetrize_lowers_the_tolerance_when_atoms_would_merge():
    molecule = Atoms("H2", scaled_positions=[[0, 0, 0.45], [0, 0, 0.55]], cell=[3, 3, 7.4], pbc=True)
    result = symmetry.symmetrize(molecule, symprec=1.5)
    assert result.symprec < 1.5
    assert len(result.atoms) == 2
    assert result.number == 123


def test_random_crystal_has_no_symmetry():
    rng = np.random.default_rng(5)
    cell = 5 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
    atoms = Atoms("Si3", scaled_positions=rng.random((3, 3)), cell=cell, pbc=True)
    assert symmetry.symmetrize(atoms, symprec=0.01).number == 1


@pytest.mark.parametrize("call", [symmetry.space_group, symmetry.symmetrize, symmetry.primitive])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_never_reaches_spglib(diamond, call, bad):
    diamond.positions[1, 2] = bad
    with pytest.raises(StructureError, match="non-finite cell or position"):
        call(diamond)
    diamond.positions[1, 2] = 0.0
    diamond.cell[0, 0] = bad
    with pytest.raises(StructureError, match="non-finite cell or position"):
        call(diamond)


def test_other_bad_input_is_refused(diamond):
    with pytest.raises(StructureError, match="structure is empty"):
        symmetry.space_group(Atoms(cell=[3, 3, 3], pbc=True))
    flipped = diamond.copy()
    flipped.set_cell(diamond.cell[[1, 0, 2]])
    with pytest.raises(StructureError, match="right-handed"):
        symmetry.space_group(flipped)
    slab = diamond.copy()
    slab.pbc = (True, True, False)
    with pytest.raises(StructureError, match="three periodic directions"):
        symmetry.space_group(slab)
    with pytest.raises(ValueError, match="symprec is 0"):
        symmetry.space_group(diamond, symprec=0)
    overlapping = Atoms("Si2", positions=[[0, 0, 0], [0, 0, 1e-4]], cell=[3, 3, 3], pbc=True)
    with pytest.raises(SymmetryError, match="spglib failed at symprec"):
        symmetry.space_group(overlapping)


@pytest.mark.parametrize("crystal", [bulk("Si", "diamond", a=5.43), zincblende(), hexagonal_polytype(), bulk("Mg")])
def test_cartesian_rotations_are_orthogonal_form_a_group_and_turn_with_the_crystal(crystal):
    found = symmetry.cartesian_rotations(crystal)
    assert len(found) == symmetry.space_group(crystal).n_operations
    assert np.allclose(found @ found.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    for product in (found[:, None] @ found[:4]).reshape(-1, 3, 3):
        assert np.abs(found - product).max(axis=(1, 2)).min() < 1e-6
    turned = make_supercell(crystal, [[1, 1, 0], [0, 1, 0], [0, 1, 2]])  # a cell of lower symmetry than the crystal
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    turn = Atoms("H", positions=[[0, 0, 0]], cell=np.eye(3))
    turn.rotate(37.0, (1, 2, 3), rotate_cell=True)
    q = turn.cell[:].T
    others = symmetry.cartesian_rotations(turned)
    assert len(others) == len(found)
    for rotation in q @ found @ q.T:
        assert np.abs(others - rotation).max(axis=(1, 2)).min() < 1e-6
