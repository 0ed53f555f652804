"""Lattice translations that a target g(r) tells of."""

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

from ase_hvae.data import load_known
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.reconstruct import Composition, WyckoffPrior
from ase_hvae.reconstruct.coordination import first_shells
from ase_hvae.reconstruct.goal import Limits, Target
from ase_hvae.reconstruct.lattice import ALIKE, SPACING, unlikely_translations
from ase_hvae.reconstruct.propose import propose
from ase_hvae.symmetry import primitive

RUTILE = crystal(["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90])
SILICON = [primitive(atoms) for atoms in load_known("Si") if atoms.info["name"] in ("M-Si", "S-Si", "st12", "bcc")]


def table_of(atoms: Atoms) -> np.ndarray:
    return unlikely_translations(target_of(atoms), Composition.parse(str(atoms.symbols)))


def target_of(atoms: Atoms) -> Target:
    return Target(radial_distribution(atoms), RDFSettings(), Limits(1.5, atoms.get_volume() / len(atoms), 0.1))


def translations(cell: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of all lattice translations, and how many of each length there are, opposite ones being one."""
    points = np.array(list(itertools.product(range(-6, 7), repeat=3)))
    lengths = np.linalg.norm(points[np.any(points != 0, axis=1)] @ cell, axis=1)
    lengths = lengths[lengths < longest]
    return lengths, (np.abs(lengths[:, None] - lengths) < ALIKE).sum(1) // 2


@pytest.mark.parametrize("atoms", [RUTILE, bulk("NaCl", "rocksalt", 5.64), bulk("Si"), *SILICON], ids=str)
def test_a_crystal_has_its_own_translations(atoms):
    table = table_of(atoms)
    lengths, multiples = translations(atoms.cell.array, table.shape[1] * SPACING)
    assert not table[np.minimum(multiples, len(table)) - 1, (lengths / SPACING).astype(int)].any()


def test_no_translation_is_where_the_target_has_nothing():
    diamond = bulk("Si", a=5.43)  # neighbours at 2.35, 3.84, 4.50, 5.43 Å
    table, lengths = table_of(diamond), (2.0, 3.1, 4.2, 5.0)
    for length in lengths:
        np.testing.assert_allclose(table[:, int(length / SPACING)], 3 / length, rtol=0.01)
    at = [int(length / SPACING) for length in (2.351, 3.84, 5.43)]  # 4, 12, 6 neighbours: 2, 6, 3 translations
    assert [(table[:, k] == 0).sum() for k in at] == [2, 6, 3]


def test_translations_are_those_of_each_species():
    """Neighbours of the other species do not count."""
    salt = bulk("NaCl", "rocksalt", 5.64)
    table = table_of(salt)
    assert table[0, int(2.82 / SPACING)] > 0.9  # Na-Cl
    assert table[5, int(5.64 / np.sqrt(2) / SPACING)] == 0


def test_proposals_have_translations_that_the_target_has():
    """Cells drawn without regard to the target seldom do; of sixteen, not all proposals find one."""
    atoms, composition = SILICON[0], Composition.parse("Si")
    target, rng = target_of(atoms), np.random.default_rng(0)
    table, shells = unlikely_translations(target, composition), first_shells(target, composition)

    def share(unlikely: np.ndarray) -> float:
        templates = WyckoffPrior(spacegroups=(2, 12, 14, 62)).draw((8,), np.random.default_rng(1))
        goal = target.goal(sigma=0.3, rmax=5.5)
        crystals, losses = propose(templates, 400, goal, shells, unlikely, 0.1, rng)
        sound = []
        for cell in crystals.cells[np.isfinite(losses)]:
            lengths, multiples = translations(cell, table.shape[1] * SPACING)
            found = table[np.minimum(multiples, len(table)) - 1, (lengths / SPACING).astype(int)]
            sound.append(not found.any())
        assert len(sound) > 50
        return float(np.mean(sound))

    blind = share(np.zeros_like(table))
    assert share(table) > max(0.5, 4 * blind)
