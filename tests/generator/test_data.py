import numpy as np
import pytest
from ase.data import atomic_masses
from ase.units import _amu

from ase_hvae.data import known_table, load_known
from ase_hvae.structures import check_structure, min_distance
from ase_hvae.symmetry import build_crystal, space_group, symmetrize

TABLE = known_table("Si")
NAMES = [facts["name"] for facts in TABLE]


@pytest.fixture(scope="module")
def known():
    return dict(zip(NAMES, load_known("Si"), strict=True))


def test_table_is_long_enough_and_names_are_unique():
    assert len(TABLE) == 57
    assert len(set(NAMES)) == 57
    aliases = [alias for facts in TABLE for alias in facts["aliases"]]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(NAMES)


@pytest.mark.parametrize("facts", TABLE, ids=NAMES)
def test_crystal_agrees_with_its_facts(known, facts):
    atoms = known[facts["name"]]
    check_structure(atoms)
    # Facts carry five decimals: 1e-3 Å is what remains of them in the largest cells.
    info = space_group(atoms, symprec=1e-3)
    assert info.number == facts["spacegroup"]
    assert info.symbol == facts["symbol"]
    assert len(atoms) == info.n_primitive == facts["n_primitive"]
    density = atomic_masses[14] * _amu * 1e3 * len(atoms) / (atoms.cell.volume * 1e-24)
    assert density == pytest.approx(facts["density"], abs=1e-3)  # stated to three decimals
    assert 2.2 < min_distance(atoms) < 2.9


@pytest.mark.parametrize("facts", TABLE, ids=NAMES)
def test_orbits_have_the_stated_multiplicities(facts):
    atoms = build_crystal(facts["hall_number"], facts["cellpar"], [(14, xyz) for _, *xyz in facts["sites"]])
    found = np.bincount(atoms.arrays["orbit"]).tolist()
    assert found == [int(position[:-1]) for position, *_ in facts["sites"]]
    assert len(atoms) == int("".join(filter(str.isdigit, facts["pearson"])))


def test_symmetrize_keeps_the_stated_group_of_every_crystal(known):
    # The hP6 prototype lies within 0.1 Å of P6_222: idealising it raises the symmetry, as it should.
    found = {name: symmetrize(atoms).number for name, atoms in known.items()}
    raised = {name for name, atoms in known.items() if found[name] != atoms.info["spacegroup"]}
    assert raised == {"P6_122 hP6"}
    assert found["P6_122 hP6"] == 180


def test_diamond_comes_first_and_is_diamond(known):
    diamond = known["diamond"]
    assert min_distance(diamond) == pytest.approx(5.4663 * np.sqrt(3) / 4, abs=1e-6)
    assert diamond.info["energy_above"] == 0.0
    assert diamond.info["doi"] == "10.1103/RevModPhys.93.025010"
    assert "Si-I" in diamond.info["aliases"]


def test_doubtful_assignments_keep_their_remark(known):
    assert "individual assignment not verified" in known["clathrate Si92"].info["remark"]


def test_load_known_returns_fresh_copies():
    load_known("Si")[0].positions[:] = 99.0
    assert load_known("Si")[0].positions.max() < 10


def test_unknown_element_is_refused():
    with pytest.raises(ValueError, match="no table of known crystals for 'Xx'; available: Si"):
        load_known("Xx")
