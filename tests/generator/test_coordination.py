"""First shells of target RDFs: where they end and how many neighbours are in them."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

from ase_hvae.data import load_known
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.reconstruct import Composition
from ase_hvae.reconstruct.coordination import Coordination, first_shells
from ase_hvae.reconstruct.goal import Limits, Target

KNOWN = {atoms.info["name"]: atoms for atoms in load_known("Si")}
RUTILE = crystal(["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90])


def shells_of(atoms: Atoms, noise: float = 0.0) -> Coordination:
    rdf = radial_distribution(atoms)
    rdf = np.clip(rdf + noise * np.random.default_rng(0).normal(size=rdf.shape), 0, None)
    target = Target(rdf, RDFSettings(), Limits(1.5, atoms.get_volume() / len(atoms), 0.1))
    return first_shells(target, Composition.parse(atoms.get_chemical_formula()))


@pytest.mark.parametrize(
    ("atoms", "neighbors"),
    [
        (bulk("Si"), 4),
        (bulk("Cu"), 12),
        (bulk("Mg"), 12),
        (bulk("Fe"), 14),  # 8 and 6 a little further
        (bulk("Po", "sc", 3.34), 6),
        (KNOWN["bc8"], 4),
        (KNOWN["bct5"], 5),
    ],
    ids=lambda value: str(value.symbols) if isinstance(value, Atoms) else None,
)
def test_neighbors_of_elements(atoms, neighbors):
    shells = shells_of(atoms)
    assert shells.least.tolist() == shells.most.tolist() == [[neighbors]]


def test_neighbors_of_each_species_around_another():
    shells = shells_of(RUTILE)  # species O, Ti
    assert shells.least[0, 1] == shells.most[0, 1] == 3
    assert shells.least[1, 0] == shells.most[1, 0] == 6
    assert 1.98 < shells.shells[1] < 3.5


def test_mean_between_whole_numbers_leaves_both():
    shells = shells_of(KNOWN["I4/mmm-Si4"])  # two sites, with 4 and 5 neighbours
    assert (shells.least.item(), shells.most.item()) == (4, 5)


def test_noise_does_not_change_the_number_of_neighbors():
    shells = shells_of(KNOWN["Si24"], noise=0.05)
    assert (shells.least.item(), shells.most.item()) == (4, 4)


def test_no_shell_without_a_gap():
    assert shells_of(KNOWN["beta-Sn"]).shells.tolist() == [0]  # 4 + 2 neighbours, the next shortly after
    flat = Target(1 + 0.1 * np.sin(RDFSettings().grid), RDFSettings(), Limits(1.5, 20.0, 0.1))
    assert first_shells(flat, Composition.parse("Si")) == Coordination(np.zeros(1), np.zeros((1, 1)), np.zeros((1, 1)))
