"""The prior of reconstruction: space groups and orbits as crystal prototypes have them."""

import itertools
from collections import Counter

import numpy as np
import pytest
import spglib
from ase.build import bulk
from pymatgen.symmetry.groups import SpaceGroup

from ase_hvae.reconstruct import WyckoffPrior
from ase_hvae.reconstruct.combinations import ORBIT_WEIGHTS, draw_choice
from ase_hvae.reconstruct.prior import FREQUENT_SHARE, PROTOTYPES
from ase_hvae.reconstruct.wyckoff import SYSTEMS, space_group

MOST_ATOMS = 40


@pytest.fixture(scope="module")
def prototypes() -> list[tuple[int, list[str]]]:
    """Space group and letters of the orbits of the prototypes in AFLOW's library, as pymatgen has it."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    found = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        number, structure = int(entry["tags"]["aflow"].split("_")[2]), entry["snl"].structure
        cell = structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure]
        dataset = spglib.get_symmetry_dataset(cell, symprec=1e-3)
        orbits = dict(zip(dataset.crystallographic_orbits.tolist(), dataset.wyckoffs, strict=True))
        found.append((number, list(orbits.values()) if dataset.number == number else []))
    return found


def log_chance(number: int, letters: list[str], weights: np.ndarray) -> float:
    """Logarithm of the chance of orbits, all species alike, among all that make as many atoms."""
    sites = space_group(number).sites
    size, freedom = ({site.letter: getattr(site, name) for site in sites} for name in ("multiplicity", "n_free"))
    n_atoms = sum(size[letter] for letter in letters)
    ways = np.zeros(n_atoms + 1)
    ways[0] = 1
    for site in sites:
        before, many = ways.copy(), 1 if site.n_free == 0 else n_atoms
        for k in range(1, min(many, n_atoms // site.multiplicity) + 1):
            used = k * site.multiplicity
            ways[used:] += weights[site.n_free] ** k * before[: n_atoms + 1 - used]
    return float(sum(np.log(weights[freedom[letter]]) for letter in letters) - np.log(ways[n_atoms]))


def test_prior_learns_from_structures():
    prior = WyckoffPrior.from_structures([bulk("Si"), bulk("Cu"), bulk("Mg")], uniform_share=0.0)
    assert [number for number, _ in prior.learned] == [227, 225, 194]
    drawn = itertools.islice(prior.draw((2,), np.random.default_rng(0)), 50)
    assert {entry.group.number for entry in drawn} == {227, 194}


def test_space_groups_are_as_frequent_as_in_prototypes_of_their_crystal_system(prototypes):
    assert dict(Counter(number for number, _ in prototypes)) == PROTOTYPES
    numbers = (2, 191, 194, 143)  # 2; 7 and 22; no prototypes, and so no turn of the trigonal system
    drawn = WyckoffPrior(spacegroups=numbers).draw((2,), np.random.default_rng(0))
    counts = Counter(next(drawn).group.number for _ in range(4000))
    for number, share in zip(numbers, (1 / 2, 7 / 58, 22 / 58, 0), strict=True):
        expected = FREQUENT_SHARE * share + (1 - FREQUENT_SHARE) / 4
        assert counts[number] / 4000 == pytest.approx(expected, abs=0.03)


def test_crystal_systems_end_where_their_last_space_groups_do():
    systems = [SpaceGroup.from_int_number(number).crystal_system for number in range(1, 231)]
    ends = [*(number for number in range(1, 230) if systems[number - 1] != systems[number]), 230]
    assert {systems[number - 1]: number for number in ends} == SYSTEMS


def test_weights_of_orbits_are_the_likeliest_for_prototypes(prototypes):
    sizes = {number: {site.letter: site.multiplicity for site in space_group(number).sites} for number in PROTOTYPES}
    small = [(k, letters) for k, letters in prototypes if 0 < sum(sizes[k][letter] for letter in letters) <= MOST_ATOMS]
    assert len(small) > 270

    def likelihood(weights):
        return np.mean([log_chance(number, letters, weights) for number, letters in small])

    best = likelihood(np.array(ORBIT_WEIGHTS))
    assert best > likelihood(np.ones(4)) + 0.3
    for index, factor in itertools.product(range(4), (0.75, 1.33)):
        assert likelihood(np.array(ORBIT_WEIGHTS) * np.where(np.arange(4) == index, factor, 1)) < best


def test_orbits_are_drawn_by_the_freedom_of_their_sites():
    # two atoms in P-1: on two of its eight centres, or on the general position
    expected = ORBIT_WEIGHTS[3] / (28 * ORBIT_WEIGHTS[0] ** 2 + ORBIT_WEIGHTS[3])
    rng = np.random.default_rng(1)
    counts = Counter(draw_choice(2, (2,), rng)[0] for _ in range(3000))
    assert counts[("i",)] / 3000 == pytest.approx(expected, abs=0.03)


def test_hundreds_of_atoms_find_their_orbits():
    letters, _ = draw_choice(1, (300,), np.random.default_rng(0))
    assert letters == ("a",) * 300
