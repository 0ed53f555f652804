"""Reconstruction of crystals of several species: partial g(r), species on Wyckoff positions, distances per pair."""

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

from ase_hvae.errors import ReconstructionError
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.reconstruct import Composition, WyckoffPrior, default_min_distances, reconstruct
from ase_hvae.reconstruct.accept import distinct, keeps_space_group
from ase_hvae.reconstruct.combinations import draw_choice, feasible
from ase_hvae.reconstruct.coordination import first_shells
from ase_hvae.reconstruct.goal import Limits, Target
from ase_hvae.reconstruct.lattice import unlikely_translations
from ase_hvae.reconstruct.propose import propose
from ase_hvae.reconstruct.screen import exact_rdfs, min_distances
from ase_hvae.reconstruct.steer import Stage, descend_all, steer
from ase_hvae.reconstruct.tables import Crystals, crystals_of
from ase_hvae.reconstruct.wyckoff import space_group, template
from ase_hvae.symmetry import primitive, wyckoff_sites
from ase_hvae.symmetry import space_group as find_space_group

SETTINGS = RDFSettings()
SOME_GROUPS = (1, 2, 5, 12, 69, 102, 136, 160, 166, 186, 194, 216, 221, 225)
SPECIES = ("O", "Ti")
RUTILE = crystal(["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90])
FLUORITE = primitive(
    crystal(["Ca", "F"], [(0, 0, 0), (0.25, 0.25, 0.25)], spacegroup=225, cellpar=[5.46, 5.46, 5.46, 90, 90, 90])
)
PEROVSKITE = crystal(
    ["Sr", "Ti", "O"],
    [(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0)],
    spacegroup=221,
    cellpar=[3.905, 3.905, 3.905, 90, 90, 90],
)
KNOWN = {
    "zincblende SiC": (bulk("SiC", "zincblende", 4.36), 216),
    "wurtzite SiC": (bulk("SiC", "wurtzite", 3.08, 5.05), 186),
    "NaCl": (bulk("NaCl", "rocksalt", 5.64), 225),
    "rutile TiO2": (RUTILE, 136),
    "fluorite CaF2": (FLUORITE, 225),
    "perovskite SrTiO3": (PEROVSKITE, 221),
}


def target_of(atoms: Atoms, min_distance: object = 1.5) -> Target:
    return Target(radial_distribution(atoms), SETTINGS, Limits(min_distance, atoms.get_volume() / len(atoms), 0.1))


@pytest.fixture(scope="module")
def proposals() -> Crystals:
    """40 proposals of TiO2 without short distances, of as many templates."""
    prior, rng = WyckoffPrior(spacegroups=SOME_GROUPS), np.random.default_rng(5)
    target, composition = target_of(RUTILE), Composition.parse("TiO2")
    goal, hints = (
        target.goal(sigma=0.3, rmax=5.5),
        (first_shells(target, composition), unlikely_translations(target, composition)),
    )
    crystals, distances = propose(prior.draw((3, 6), rng, composition), 8000, goal, *hints, 0.1, rng)
    apart = np.flatnonzero(np.isfinite(distances))
    first = apart[np.unique(crystals.template[apart], return_index=True)[1]]
    assert len(first) > 40
    return crystals.select(first[:40])


@pytest.mark.parametrize("atoms", [FLUORITE, bulk("NaCl", "rocksalt", 5.6), bulk("Si")], ids=str)
def test_wyckoff_positions_are_named_as_those_of_structures(atoms):
    composition, (number, sites) = Composition.parse(str(atoms.symbols)), wyckoff_sites(atoms)
    prior = WyckoffPrior.from_sites([(number, sites)], uniform_share=0.0)
    entry = next(prior.draw((len(atoms),), np.random.default_rng(0), composition))
    assert sorted(entry.wyckoffs(composition.species)) == sorted(sites)


@pytest.mark.parametrize("name", KNOWN)
def test_finds_a_crystal_from_its_own_partial_rdfs(name):
    atoms, number = KNOWN[name]
    volume = atoms.get_volume() / len(atoms)
    result = reconstruct(
        radial_distribution(atoms),
        volume,
        composition=str(atoms.symbols),
        natoms=(len(atoms),),
        n_proposals=5000,
        rng=np.random.default_rng(0),
    )
    best = result.crystals[0].atoms
    assert result.crystals[0].pearson_distance < 1e-3
    assert find_space_group(best, symprec=0.01).number == number
    assert sorted(best.symbols) == sorted(atoms.symbols)
    assert best.get_volume() / len(best) == pytest.approx(volume, rel=1e-3)


def test_the_same_seed_gives_the_same_crystals():
    def search():
        options = {"composition": "CaF2", "natoms": (3, 6), "n_proposals": 1500, "n_steered": 6, "threshold": 0.5}
        rng, prior = np.random.default_rng(4), WyckoffPrior(spacegroups=SOME_GROUPS)
        rdf, volume = radial_distribution(FLUORITE), FLUORITE.get_volume() / 3
        return reconstruct(rdf, volume, **options, prior=prior, rng=rng)

    result, again = search(), search()
    assert result.crystals
    assert result.counts == again.counts
    for one, other in zip(result.crystals, again.crystals, strict=True):
        np.testing.assert_array_equal(one.atoms.positions, other.atoms.positions)
        assert one.atoms.symbols.get_chemical_formula(empirical=True) == "CaF2"


def test_species_on_the_positions_of_zincblende():
    # 216 has four positions 1/4 of the diagonal apart: two species on neighbours (zincblende) or not (rock salt)
    rng = np.random.default_rng(0)
    assert [len({draw_choice(number, (1, 1), rng) for _ in range(50)}) for number in (216, 225, 221)] == [2, 1, 1]
    assert not feasible(227, (1, 1))  # two atoms at least on each position
    assert feasible(227, (2, 2))


@pytest.mark.parametrize("number", [2, 12, 136, 186])
def test_choices_have_the_composition(number):
    rng = np.random.default_rng(number)
    for choice in {draw_choice(number, (2, 4), rng) for _ in range(100)}:
        entry = template(number, *choice)
        assert np.bincount(entry.species).tolist() == [2, 4]
        fixed = {site.letter for site in entry.group.sites if site.n_free == 0}
        assert all(entry.letters.count(letter) == 1 for letter in fixed & set(entry.letters))


def test_compiled_partial_rdfs_agree_with_those_of_atoms(proposals):
    structures = [proposals.atoms(i, SPECIES) for i in range(len(proposals))]
    reference = radial_distribution(structures).reshape(len(proposals), -1)
    np.testing.assert_allclose(exact_rdfs(proposals, SETTINGS), reference, atol=1e-10)


def test_partial_rdfs_add_up_to_that_of_one_species(proposals):
    one = [template(entry.group.number, entry.letters) for entry in proposals.templates]
    blind = crystals_of(
        [one[t] for t in proposals.template],
        proposals.cells,
        [u[: one[t].n_free] for t, u in zip(proposals.template, proposals.coordinates, strict=True)],
    )
    partial = exact_rdfs(proposals, SETTINGS).reshape(len(proposals), 3, -1)
    weights = proposals.tables.pair_counts[proposals.template]
    total = (weights[:, :, None] * partial).sum(1) / weights.sum(1)[:, None]
    np.testing.assert_allclose(total, exact_rdfs(blind, SETTINGS), atol=1e-10)


def test_swapped_species_swap_the_partial_rdfs():
    cell, u = space_group(136).primitive @ np.diag([4.6, 4.6, 2.96]), np.array([0.305])
    entries = [template(136, ("a", "f"), species) for species in ((1, 0), (0, 1))]
    one, other = exact_rdfs(crystals_of(entries, [cell, cell], [u, u]), SETTINGS).reshape(2, 3, -1)
    np.testing.assert_array_equal(one, other[::-1])


def test_shortest_distances_are_those_of_each_pair_of_species():
    rutile = crystals_of([template(136, ("a", "f"), (1, 0))], [np.diag([4.594, 4.594, 2.959])], [np.array([0.305])])
    symbols = np.array(RUTILE.symbols)
    table = RUTILE.get_all_distances(mic=True)
    expected = [
        min(2.959 if a == b else np.inf, *table[np.outer(symbols == a, symbols == b) & (table > 0)])
        for a, b in itertools.combinations_with_replacement(SPECIES, 2)
    ]
    np.testing.assert_allclose(min_distances(rutile, 5.0)[0], expected, atol=1e-9)


@pytest.mark.parametrize("each_atom", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_gradient_of_the_loss_agrees_with_finite_differences(monkeypatch, proposals, gradient_errors, sigma, each_atom):
    monkeypatch.setattr("ase_hvae.reconstruct.goal.N_SIGMA", 6.5)  # peaks end in a step, here one of 1e-9
    goal = target_of(RUTILE, np.array([2.6, 2.1, 3.1])).goal(sigma=sigma, each_atom=each_atom)
    for error, scale in gradient_errors(proposals, goal):
        assert error < 2e-4 * scale


def test_one_shortest_distance_is_that_of_every_pair_of_species(proposals):
    """Compiled loops read one limit for each channel, whatever was passed."""
    goal = target_of(RUTILE, 2.5).goal(sigma=0.3)
    assert goal.min_distance.shape == (3,)
    apart, own = (
        descend_all(proposals, goal, 2),
        descend_all(proposals, target_of(RUTILE, np.full(3, 2.5)).goal(sigma=0.3), 2),
    )
    np.testing.assert_array_equal(apart[1], own[1])
    with pytest.raises(ValueError, match="shape"):
        target_of(RUTILE, np.full(2, 2.5)).goal()


def test_atoms_that_all_see_the_target_are_steered_by_the_same_loss(proposals):
    """Where the atoms of a species are equivalent, the mean is what each sees; elsewhere no mean is further off."""
    target = target_of(RUTILE)
    losses = [descend_all(proposals, target.goal(sigma=0.3, each_atom=each), 0)[1] for each in (False, True)]
    kinds = [proposals.entry(index).orbit_sizes for index in range(len(proposals))]
    alike = np.array([len(sizes) == len(SPECIES) for sizes in kinds])
    assert alike.any()
    assert not alike.all()
    np.testing.assert_allclose(losses[0][alike], losses[1][alike], rtol=1e-10)
    nearer = losses[0][~alike] / losses[1][~alike]
    assert nearer.max() < 1 + 1e-10  # equal where more symmetry than that of the space group makes atoms alike
    assert nearer.min() < 0.9


def test_a_crystal_alone_goes_the_same_way_as_among_others(proposals):
    stages = [Stage(0.35, 5.0, 2, 1.0, each_atom=True), Stage(0.0, np.inf, 2, 1.0)]
    together = steer(proposals, target_of(RUTILE), stages=stages)
    for index in (0, 7, 31):
        alone = steer(proposals.select(np.array([index])), target_of(RUTILE), stages=stages)
        np.testing.assert_array_equal(alone.crystals.cells[0], together.crystals.cells[index])
        assert alone.loss[0] == together.loss[index]
    kept = [together.crystals.entry(k) for k in range(len(proposals))]
    assert all(keeps_space_group(e, together.crystals.atoms(k, SPECIES), 1e-8) for k, e in enumerate(kept))


def test_space_group_and_copies_depend_on_the_species():
    entry = template(136, ("f",))
    cell, u = np.diag([4.6, 4.6, 2.96]), np.array([0.305])
    atoms = Atoms("O4", cell=cell, scaled_positions=entry.matrix @ u + entry.offset, pbc=True)
    assert keeps_space_group(entry, atoms)
    atoms.symbols[0] = "Ti"
    assert not keeps_space_group(entry, atoms)
    rock_salt, zincblende = bulk("SiC", "rocksalt", 4.3), bulk("SiC", "zincblende", 4.3)
    crystals = [rock_salt, zincblende, zincblende.repeat((2, 1, 1))]
    rdfs = radial_distribution(crystals)
    assert distinct(crystals, rdfs.reshape(3, -1)) == [0, 1]


def test_learned_positions_carry_their_species():
    prior = WyckoffPrior.from_structures([FLUORITE, bulk("Si"), bulk("NaCl", "rocksalt", 5.6)], uniform_share=0.0)
    assert prior.learned[0] == (225, ("a Ca", "c F"))
    assert {orbit[1:] for _, orbits in prior.learned[1:] for orbit in orbits} == {"", " Na", " Cl"}
    for formula, natoms, species in (("CaF2", 3, [0, 1, 1]), ("Si", 2, [0, 0]), ("NaCl", 2, [1, 0])):
        entries = itertools.islice(prior.draw((natoms,), np.random.default_rng(0), Composition.parse(formula)), 10)
        assert {tuple(entry.species) for entry in entries} == {tuple(species)}


def test_default_distances_are_those_of_the_pairs():
    limits = default_min_distances(
        Composition.parse("NaCl"), radial_distribution(KNOWN["NaCl"][0]), KNOWN["NaCl"][0].get_volume() / 2, SETTINGS
    )
    radii = {"Na": 1.66, "Cl": 1.02}  # Å; all pairs are longer than their covalent bonds
    np.testing.assert_allclose(limits, [1.8 * radii["Cl"], 0.9 * sum(radii.values()), 1.8 * radii["Na"]])
    limits = default_min_distances(
        Composition.parse("TiO2"), radial_distribution(RUTILE), RUTILE.get_volume() / 6, SETTINGS
    )
    assert 1.6 < limits[1] < 0.9 * 1.98  # bonds of 1.95 and 1.98 Å are shorter than 2.26 Å


def test_compositions_are_reduced_formulas():
    assert Composition.parse("Ti2O4") == Composition(("O", "Ti"), (2, 1))
    assert Composition.parse("Si8") == Composition(("Si",), (1,))
    assert str(Composition.parse("OTiO")) == "O2Ti"
    assert Composition.parse("SrTiO3").atoms_of(range(1, 11)) == ((3, 1, 1), (6, 2, 2))
    assert Composition.parse("SiC").channels == [("C", "C"), ("C", "Si"), ("Si", "Si")]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"natoms": (1, 3)}, ReconstructionError, "whole formula unit of ClNa, which has 2 atoms"),
        ({"composition": "Na1Cl0"}, ReconstructionError, "no chemical formula"),
        ({"composition": "NaXq"}, ReconstructionError, "no chemical formula"),
        ({"composition": "NaClO"}, ValueError, r"shape \(3, 200\), .* ask for \(6, 200\)"),
        ({"composition": "Na"}, ValueError, r"ask for \(200,\)"),
        ({"min_distance": (2.0, 2.0)}, ValueError, "one number or 3, for Cl-Cl, Cl-Na, Na-Na"),
        ({"min_distance": (2.0, -2.0, 2.0)}, ValueError, "positive"),
        ({"min_distance": 3.5}, ReconstructionError, "close packing"),
        (
            {"natoms": (2,), "prior": WyckoffPrior(spacegroups=(227,))},
            ReconstructionError,
            "crystal of ClNa with 2 atoms .* 227, which need at least 2 of each species",
        ),
    ],
)
def test_refuses_requests_that_make_no_sense(options, error, match):
    atoms = KNOWN["NaCl"][0]
    arguments = {"target_rdf": radial_distribution(atoms), "volume_per_atom": atoms.get_volume() / 2}
    with pytest.raises(error, match=match):
        reconstruct(**arguments | {"composition": "NaCl"} | options, rng=np.random.default_rng(0))
