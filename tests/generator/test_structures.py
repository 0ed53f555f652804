import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.db import connect
from ase.neighborlist import neighbor_list

from ase_hvae.errors import StructureError
from ase_hvae.structures import check_structure, min_distance, neighbor_pairs, read_structures


@pytest.fixture
def diamond():
    return bulk("Si", "diamond", a=5.43)


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (bulk("Si", "diamond", a=5.43), 5.43 * np.sqrt(3) / 4),
        (bulk("Cu", "fcc", a=3.6), 3.6 / np.sqrt(2)),  # one atom: its own images
        (bulk("Po", "sc", a=3.3), 3.3),
        (Atoms("H2", positions=[[0, 0, 0], [0, 0, 29.3]], cell=[30, 30, 30], pbc=True), 0.7),
    ],
)
def test_min_distance_of_known_crystals(atoms, expected):
    assert min_distance(atoms) == pytest.approx(expected, abs=1e-10)


def test_min_distance_does_not_depend_on_the_cell():
    rng = np.random.default_rng(2)
    atoms = Atoms("Si4", scaled_positions=rng.random((4, 3)), cell=rng.normal(size=(3, 3)) + 6 * np.eye(3), pbc=True)
    skewed = make_supercell(atoms, [[1, 3, 0], [0, 1, -2], [0, 0, 1]])
    assert min_distance(skewed) == pytest.approx(min_distance(atoms), abs=1e-9)
    assert min_distance(atoms * (2, 2, 1)) == pytest.approx(min_distance(atoms), abs=1e-9)


def test_neighbor_pairs_agree_with_ase():
    rng = np.random.default_rng(4)
    atoms = Atoms("SiC2", scaled_positions=rng.random((3, 3)), cell=rng.normal(size=(3, 3)) + 4 * np.eye(3), pbc=True)
    first, second, shifts, distances = neighbor_pairs(atoms, 7.0)
    expected = neighbor_list("ijSd", atoms, 7.0)
    order = np.lexsort((*shifts.T, second, first))
    other = np.lexsort((*expected[2].T, expected[1], expected[0]))
    assert np.array_equal(first[order], expected[0][other])
    assert np.array_equal(shifts[order], expected[2][other])
    assert np.allclose(distances[order], expected[3][other], atol=1e-12)


def test_check_structure_accepts_a_crystal(diamond):
    check_structure(diamond)


def broken(name):
    atoms = bulk("Si", "diamond", a=5.43)
    if name == "empty":
        return Atoms(cell=[3, 3, 3], pbc=True)
    if name == "position":
        atoms.positions[1, 0] = np.nan
    elif name == "cell":
        atoms.cell[2, 1] = np.inf
    elif name == "pbc":
        atoms.pbc = (True, False, True)
    elif name == "left":
        atoms.set_cell(atoms.cell[[1, 0, 2]])
    elif name == "flat":
        atoms.set_cell([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    elif name == "overlap":
        atoms.positions[1] = atoms.positions[0] + [0.1, 0, 0]
    elif name == "dummy":
        atoms.numbers[0] = 0
    return atoms


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "x is empty"),
        ("position", "x has a non-finite position at atom 1"),
        ("cell", "x has a non-finite cell"),
        ("pbc", r"x has pbc \[True, False, True\]"),
        ("left", "x has a left-handed cell"),
        ("flat", "x has a cell of zero volume"),
        ("overlap", "x has two atoms 0.100 Å apart; at least 0.5 Å"),
        ("dummy", "x has an atomic number 0"),
    ],
)
def test_check_structure_names_what_is_wrong(name, message):
    with pytest.raises(StructureError, match=message):
        check_structure(broken(name), label="x")


def test_overlap_of_an_atom_with_its_own_image_is_found():
    with pytest.raises(StructureError, match=r"0\.400 Å apart"):
        check_structure(Atoms("H", cell=[5, 5, 0.4], pbc=True))


def test_read_structures_reads_files_databases_and_folders(tmp_path, diamond):
    copper = bulk("Cu")
    ase.io.write(tmp_path / "a.extxyz", [diamond, copper])
    ase.io.write(tmp_path / "b.cif", diamond)
    ase.io.write(tmp_path / ".hidden.cif", diamond)
    with connect(tmp_path / "c.db") as database:
        database.write(copper)
        database.write(diamond)
    assert [len(atoms) for atoms in read_structures(tmp_path / "a.extxyz")] == [2, 1]
    assert [str(atoms.symbols) for atoms in read_structures(tmp_path / "c.db")] == ["Cu", "Si2"]
    everything = read_structures(tmp_path)
    assert [atoms.info["source"] for atoms in everything] == ["a.extxyz#0", "a.extxyz#1", "b.cif#0", "c.db#0", "c.db#1"]
    assert len(read_structures(tmp_path / "a.extxyz", index=1)) == 1


def test_read_structures_names_file_and_position(tmp_path, diamond):
    overlapping = diamond.copy()
    overlapping.positions[1] = overlapping.positions[0] + [0.0, 0.1, 0.0]
    ase.io.write(tmp_path / "bad.extxyz", [diamond, overlapping])
    with pytest.raises(StructureError, match=r"bad\.extxyz, structure 1 has two atoms"):
        read_structures(tmp_path / "bad.extxyz")


def test_read_structures_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(StructureError, match=r"nowhere\.cif does not exist"):
        read_structures(tmp_path / "nowhere.cif")
    with pytest.raises(StructureError, match="holds no files"):
        read_structures(tmp_path)
    (tmp_path / "notes.txt").write_text("not a crystal\n")
    with pytest.raises(StructureError, match=r"notes\.txt cannot be read as structures"):
        read_structures(tmp_path / "notes.txt")
    (tmp_path / "empty.cif").write_text("")
    with pytest.raises(StructureError, match=r"empty\.cif"):
        read_structures(tmp_path / "empty.cif")


def test_read_structures_refuses_partial_occupancy(tmp_path):
    disordered = bulk("Cu", cubic=True)
    disordered.info["occupancy"] = {"0": {"Cu": 0.5, "Au": 0.5}}
    disordered.set_array("spacegroup_kinds", np.zeros(4, dtype=int))
    ase.io.write(tmp_path / "alloy.cif", disordered)
    with pytest.raises(StructureError, match=r"alloy\.cif, structure 0 has a partially occupied site"):
        read_structures(tmp_path / "alloy.cif")
