"""Reconstruction: tables, proposals, g(r), steering, and finding known crystals from their own RDF."""

import itertools
import math
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from numba.extending import is_jitted

from ase_hvae.errors import ReconstructionError
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.reconstruct import Composition, WyckoffPrior, default_min_distances, reconstruct
from ase_hvae.reconstruct.accept import distinct, keeps_space_group
from ase_hvae.reconstruct.combinations import canonical, draw_choice, feasible, least_atoms
from ase_hvae.reconstruct.coordination import Coordination, first_shells
from ase_hvae.reconstruct.drawing import EDGE, draw
from ase_hvae.reconstruct.goal import Limits, Target
from ase_hvae.reconstruct.kernels import is_near, make_space, triangulate
from ase_hvae.reconstruct.lattice import unlikely_translations
from ase_hvae.reconstruct.propose import STRICTNESS, n_proposals_of, propose
from ase_hvae.reconstruct.screen import choose, exact_rdfs, min_distances
from ase_hvae.reconstruct.steer import Stage, descend_all, steer
from ase_hvae.reconstruct.tables import Crystals, crystals_of
from ase_hvae.reconstruct.wyckoff import space_group, template
from ase_hvae.structures import min_distance
from ase_hvae.symmetry import space_group as find_space_group

SETTINGS = RDFSettings()
SOME_GROUPS = (1, 2, 5, 12, 15, 38, 43, 64, 88, 121, 141, 148, 167, 180, 191, 194, 206, 217, 227, 230)
DIAMOND = bulk("Si")
SILICON = Composition.parse("Si")


def target_of(atoms: Atoms, min_distance: float = 2.0, tolerance: float = 0.1) -> Target:
    limits = Limits(min_distance, atoms.get_volume() / len(atoms), tolerance)
    return Target(radial_distribution(atoms), SETTINGS, limits)


def hints_of(target: Target) -> tuple[Coordination, np.ndarray]:
    return first_shells(target, SILICON), unlikely_translations(target, SILICON)


@pytest.fixture(scope="module")
def proposals() -> Crystals:
    """60 proposals without short distances, of as many templates as possible."""
    prior, rng = WyckoffPrior(spacegroups=SOME_GROUPS), np.random.default_rng(3)
    target = target_of(bulk("Si", a=(8 * 20.0) ** (1 / 3)))
    goal, hints = target.goal(sigma=0.3, rmax=5.5), hints_of(target)
    crystals, distances = propose(prior.draw(range(1, 9), rng), 8000, goal, *hints, 0.1, rng)
    apart = np.flatnonzero(np.isfinite(distances))
    first = apart[np.unique(crystals.template[apart], return_index=True)[1]]
    return crystals.select(first[:60])


@pytest.mark.parametrize("number", SOME_GROUPS)
def test_operations_map_every_wyckoff_position_onto_itself(number):
    group = space_group(number)
    rng = np.random.default_rng(number)
    for site in group.sites:
        points = site.matrix @ rng.random(site.n_free) + site.offset
        images = np.einsum("gab,nb->gna", group.rotations, points) + group.translations[:, None]
        difference = images[:, :, None] - points
        nearest = np.abs(difference - np.round(difference)).max(-1)
        assert nearest.min(2).max() < 1e-9
        assert len(np.unique(np.argmin(nearest, axis=2)[:, 0])) == site.multiplicity


def test_wyckoff_tables_of_diamond():
    group = space_group(227)
    assert (group.symbol, group.family) == ("Fd-3m", "cubic")
    assert [(site.letter, site.multiplicity) for site in group.sites if site.multiplicity < 8] == [
        ("d", 4),
        ("c", 4),
        ("b", 2),
        ("a", 2),
    ]
    assert template(227, ("a",)).wyckoffs(["Si"]) == ("8a",)
    assert not feasible(227, (1,))
    assert draw_choice(225, (1,), np.random.default_rng(0)) in {(("a",), (0,)), (("b",), (0,))}


def test_renamed_positions_give_the_same_crystals():
    assert canonical(12, ("d", "i")) == canonical(12, ("a", "i")) == canonical(12, ("b", "i"))
    assert canonical(227, ("a",)) == canonical(227, ("b",))
    assert canonical(227, ("c",)) != canonical(227, ("a",))
    # P-1: an origin shift takes a pair of the eight centres to any with the same difference, of which there are 7
    rng = np.random.default_rng(0)
    assert len({draw_choice(2, (2,), rng) for _ in range(400)}) == 7 + 1
    for number in (2, 12, 139, 194):
        drawn = {draw_choice(number, (4,), rng) for _ in range(200)}
        assert all(canonical(number, *choice) == choice for choice in drawn)
        assert all(template(number, *choice).n_atoms == 4 for choice in drawn)


def test_renamed_positions_have_the_same_rdf():
    number = 139
    one, other = ("a", "e"), ("b", "e")  # I4/mmm: shifted by c/2
    assert canonical(number, one) == canonical(number, other)
    cell = space_group(number).primitive @ np.diag([4.0, 4.0, 9.0])
    crystals = crystals_of(
        [template(number, one), template(number, other)], [cell, cell], [np.array([0.3]), np.array([0.8])]
    )
    rdfs = exact_rdfs(crystals, SETTINGS)
    np.testing.assert_allclose(rdfs[0], rdfs[1], atol=1e-9)


def test_feasible_agrees_with_the_multiplicities():
    for number in SOME_GROUPS:
        assert feasible(number, (least_atoms(number),))
        assert not any(feasible(number, (n,)) for n in range(1, least_atoms(number)))
    assert least_atoms(227) == 2


def test_most_proposals_go_to_templates_with_some_freedom_but_not_too_much():
    no_symmetry = [template(1, ("a",) * n) for n in (1, 2, 6, 8, 12, 16, 200)]
    assert [n_proposals_of(entry) for entry in no_symmetry] == [64, 64, 64, 23, 3, 1, 1]
    assert n_proposals_of(template(227, ("a",))) == 1  # nothing but the volume is free
    assert n_proposals_of(template(194, ("f",))) == 4  # c / a and z


def test_proposals_have_the_space_group_they_were_drawn_for(proposals):
    assert len(proposals) > 40
    for index in range(len(proposals)):
        entry, atoms = proposals.entry(index), proposals.atoms(index, "Si")
        assert keeps_space_group(entry, atoms)
        found = find_space_group(atoms, symprec=1e-3)
        # spglib may find more operations, never fewer
        assert found.n_operations >= len(entry.group.rotations)
        assert atoms.get_volume() / len(atoms) == pytest.approx(20.0, rel=0.1001)
        assert min_distance(atoms) >= 2.0 - 1e-9


def test_compiled_rdf_agrees_with_the_one_of_atoms(proposals):
    ours = exact_rdfs(proposals, SETTINGS)
    reference = radial_distribution([proposals.atoms(i, "Si") for i in range(len(proposals))])
    assert np.abs(ours - reference).max() < 1e-10
    for settings in (RDFSettings(5.0, 80, 0.1), RDFSettings(9.0, 300, 0.05)):
        options = {"rmax": settings.rmax, "n_bins": settings.n_bins, "sigma": settings.sigma}
        reference = radial_distribution(proposals.atoms(0, "Si"), **options)
        assert np.abs(exact_rdfs(proposals, settings)[0] - reference).max() < 1e-10


def test_shortest_distances_agree_with_those_of_atoms(proposals):
    reference = [min(min_distance(proposals.atoms(i, "Si")), 2.2) for i in range(len(proposals))]
    np.testing.assert_allclose(min_distances(proposals, 2.2)[:, 0], reference, atol=1e-9)


def test_an_atom_is_near_another_where_their_shortest_distance_is_below_the_cutoff():
    """In narrow and skewed cells, too, where rounding scaled coordinates does not find the nearest image."""
    rng, space, images = np.random.default_rng(0), make_space(2, 1, 0), np.indices((31, 31, 31)).reshape(3, -1).T - 15
    answers = []
    while len(answers) < 200:
        cell = rng.normal(size=(3, 3)) * rng.uniform(0.5, 6, 3)[:, None]
        if np.linalg.norm(np.linalg.inv(cell), axis=0).max() > 2:  # lattice planes closer than 0.5 Å
            continue
        assert triangulate(cell, space.lower, space.frame)
        space.scaled[:] = rng.uniform(-2, 2, (2, 3))
        distances = np.linalg.norm((space.scaled[1] - space.scaled[0] + images) @ cell, axis=1)
        cutoff = rng.uniform(0.5, 2.5)
        answers.append(is_near(space, 0, 1, cutoff))
        assert answers[-1] == (distances.min() < cutoff)
    assert 50 < sum(answers) < 150


def test_loss_of_each_atom_is_that_of_what_it_sees(monkeypatch, proposals):
    monkeypatch.setattr("ase_hvae.reconstruct.goal.N_SIGMA", 6.5)  # peaks end beyond what is told from 0
    goal = target_of(DIAMOND).goal(sigma=0.4, rmax=5.0, each_atom=True)
    grid = goal.origin + goal.step * np.arange(len(goal.target))
    for index, loss in enumerate(descend_all(proposals, goal, 0)[1]):
        atoms = proposals.atoms(index, "Si")
        centers, distances = neighbor_list("id", atoms, goal.cutoff)
        peaks = np.exp(-0.5 * ((grid - distances[:, None]) / goal.sigma) ** 2) / (goal.sigma * math.sqrt(2 * math.pi))
        rdfs = np.zeros((len(atoms), len(grid)))
        np.add.at(rdfs, centers, peaks * atoms.get_volume() / len(atoms) / (4 * math.pi * grid**2))
        assert loss == pytest.approx(((rdfs - goal.target) ** 2 @ goal.weights).mean(), rel=1e-3)


@pytest.mark.parametrize("each_atom", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 0.12, 0.3])
def test_gradient_of_the_loss_agrees_with_finite_differences(monkeypatch, proposals, gradient_errors, sigma, each_atom):
    monkeypatch.setattr("ase_hvae.reconstruct.goal.N_SIGMA", 6.5)  # peaks end in a step, here one of 1e-9
    target = Target(radial_distribution(DIAMOND), SETTINGS, Limits(2.4, 22.0, 0.02))
    goal = target.goal(sigma=sigma, each_atom=each_atom)
    for error, scale in gradient_errors(proposals, goal):
        assert error < 2e-4 * scale


def test_space_group_never_drops_while_steering(proposals):
    target = target_of(DIAMOND)
    steered = steer(proposals, target)
    assert len(steered.crystals) == len(proposals)
    for index in range(len(proposals)):
        crystals = steered.crystals
        assert keeps_space_group(crystals.entry(index), crystals.atoms(index, "Si"), tolerance=1e-8)
    before = steer(proposals, target, stages=[Stage(0.0, np.inf, 0, 1.0)]).loss
    assert (steered.loss < before).mean() > 0.9


def test_loss_never_rises_within_a_stage(proposals):
    target = target_of(DIAMOND)
    for each_atom in (False, True):
        stages = [Stage(0.3, 6.0, n, 1.0, each_atom) for n in (0, 1, 4, 8)]
        losses = [steer(proposals, target, stages=[stage]).loss for stage in stages]
        for earlier, later in itertools.pairwise(losses):
            assert (later <= earlier).all()
        assert (losses[-1] < losses[0]).mean() > 0.9


def test_a_crystal_alone_goes_the_same_way_as_among_a_thousand(proposals):
    target = target_of(DIAMOND)
    many = proposals.select(np.arange(1000) % len(proposals))
    stages = [Stage(0.35, 5.0, 2, 1.0, each_atom=True), Stage(0.0, np.inf, 2, 1.0)]
    together = steer(many, target, stages=stages)
    for index in (0, 7, 31):
        alone = steer(proposals.select(np.array([index])), target, stages=stages)
        np.testing.assert_array_equal(alone.crystals.cells[0], together.crystals.cells[index])
        np.testing.assert_array_equal(alone.crystals.coordinates[0], together.crystals.coordinates[index])
        assert alone.loss[0] == together.loss[index]


def test_a_proposal_is_the_same_whatever_is_drawn_beside_it(proposals):
    target, tables = target_of(DIAMOND), proposals.tables
    goal, hints = target.goal(sigma=0.3, rmax=5.5), hints_of(target)
    strictness = np.where(np.arange(1000) % 3, 0.5, 0.0)
    template_of = np.arange(1000) % len(proposals.templates)

    def drawn(first, last):
        cells, coordinates = np.zeros((last - first, 3, 3)), np.zeros((last - first, proposals.coordinates.shape[1]))
        rows = slice(first, last)
        arrays = tables, template_of[rows], strictness[rows]
        losses = draw(*arrays, np.uint64(7), first, goal, *hints, 0.1, cells, coordinates)
        return losses, cells, coordinates

    together = drawn(0, 1000)
    for first, last in ((0, 1), (500, 501), (990, 1000)):
        for some, everything in zip(drawn(first, last), together, strict=True):
            np.testing.assert_array_equal(some, everything[first:last])
    assert len(np.unique(together[1][:, 0, 0])) > 900  # streams differ


def soft_counts(atoms: Atoms, shell: float) -> np.ndarray:
    """Neighbours of each atom; at the edge of the shell they fade out."""
    centers, distances = neighbor_list("id", atoms, shell + EDGE / 2)
    weights = np.minimum((shell - distances) / EDGE + 0.5, 1)
    return np.bincount(centers, weights, minlength=len(atoms))


def test_losses_of_proposals_are_those_of_their_rdfs_and_neighbors():
    target = target_of(DIAMOND)
    goal, rng = target.goal(sigma=0.3, rmax=5.5), np.random.default_rng(4)
    templates, shells = WyckoffPrior(spacegroups=SOME_GROUPS).draw(range(1, 9), rng), first_shells(target, SILICON)
    crystals, losses = propose(templates, 500, goal, shells, unlikely_translations(target, SILICON), 0.1, rng)
    sound = np.flatnonzero(np.isfinite(losses))
    assert 100 < len(sound) < 500
    exact = descend_all(crystals.select(sound), goal, 0)[1]
    # a soft count of neighbours: whole ones within the shell less half of its edge
    counts = [soft_counts(crystals.atoms(index, "Si"), shells.shells[0]) for index in sound]
    wrong = np.array([np.mean((count - 4) ** 2) for count in counts])
    strict = np.abs(losses[sound] - exact - STRICTNESS * wrong) < np.abs(losses[sound] - exact)
    assert 0.2 < strict[wrong > 0.1].mean() < 0.9  # strict ones have few wrong neighbours, the others any
    expected = exact + np.where(strict, STRICTNESS * wrong, 0)
    np.testing.assert_allclose(losses[sound], expected, rtol=0.02, atol=2e-3)  # peaks are cut off at 3 sigma


def test_screen_keeps_a_share_of_those_with_equal_freedom_and_few_of_a_template(proposals):
    many = proposals.select(np.repeat(np.arange(len(proposals)), 20))
    losses = np.random.default_rng(0).random(len(many))
    losses[::7] = np.inf
    freedom = (many.tables.n_free + many.tables.n_strains)[many.template]
    crowded = many.template[np.argmax(np.bincount(freedom)[freedom])]  # it has as much freedom as many others
    losses[many.template == crowded] *= 0.01  # and would fill their share alone
    chosen = choose(many, losses)
    assert np.isfinite(losses[chosen]).all()
    assert (np.diff(losses[chosen]) >= 0).all()
    assert np.bincount(many.template[chosen]).max() == np.sum(many.template[chosen] == crowded) == 16
    for value in np.unique(freedom):
        equals = np.flatnonzero(freedom == value)
        best = equals[np.argsort(losses[equals])][: math.ceil(0.5 * len(equals))]
        ours = chosen[freedom[chosen] == value]
        assert set(ours) <= set(best)
        for template_ in np.unique(many.template[best]):
            of_template = best[many.template[best] == template_]
            np.testing.assert_array_equal(np.sort(of_template[:16]), np.sort(ours[many.template[ours] == template_]))


def test_keeps_space_group_notices_a_lower_one():
    atoms = bulk("Si")
    entry = template(227, ("a",))
    cell = entry.group.primitive * 5.43
    atoms = Atoms("Si2", cell=cell, scaled_positions=entry.offset, pbc=True)
    assert keeps_space_group(entry, atoms)
    moved = atoms.copy()
    moved.positions[0, 0] += 0.01
    assert not keeps_space_group(entry, moved)
    strained = atoms.copy()
    strained.set_cell(atoms.cell.array @ np.diag([1.01, 1, 1]), scale_atoms=True)
    assert not keeps_space_group(entry, strained)


SMALL = {
    "diamond": (bulk("Si"), 227),
    "simple hexagonal": (Atoms("Si", cell=[[2.65, 0, 0], [-1.325, 2.295, 0], [0, 0, 2.48]], pbc=True), 191),
    "fcc Cu": (bulk("Cu", "fcc", 3.61), 225),
    "hcp Mg": (bulk("Mg", "hcp", 3.21, 5.21), 194),
}


@pytest.mark.parametrize("name", SMALL)
def test_finds_a_crystal_from_its_own_rdf(name):
    atoms, number = SMALL[name]
    target, volume = radial_distribution(atoms), atoms.get_volume() / len(atoms)
    species = atoms.symbols[0]
    rng = np.random.default_rng(0)
    result = reconstruct(target, volume, composition=species, natoms=(1, 2), n_proposals=600, n_steered=16, rng=rng)
    best = result.crystals[0]
    assert best.pearson_distance < 1e-3
    assert find_space_group(best.atoms, symprec=0.01).number == number
    assert best.atoms.get_volume() / len(best.atoms) == pytest.approx(volume, rel=1e-3)
    assert set(best.atoms.symbols) == {species}


def test_learned_positions_find_lonsdaleite_and_bc8():
    learned = ((194, ("f",)), (206, ("c",)))
    prior = WyckoffPrior(learned, uniform_share=0.2)
    u, a = 0.1003, 6.64
    site = next(site for site in space_group(206).sites if site.letter == "c")
    cell = space_group(206).primitive * a
    bc8 = Atoms("Si8", cell=cell, scaled_positions=site.matrix @ np.array([u]) + site.offset, pbc=True)
    lonsdaleite = Atoms("Si4", cell=bulk("Si", "hcp", 3.84, 6.27).cell, pbc=True)
    lonsdaleite.set_scaled_positions(
        [[1 / 3, 2 / 3, z] for z in (0.0625, 0.4375)] + [[2 / 3, 1 / 3, z] for z in (0.5625, 0.9375)]
    )
    for atoms, number in ((lonsdaleite, 194), (bc8, 206)):
        target, volume = radial_distribution(atoms), atoms.get_volume() / len(atoms)
        rng = np.random.default_rng(1)
        result = reconstruct(target, volume, natoms=(4, 8), prior=prior, n_proposals=600, n_steered=8, rng=rng)
        assert result.crystals[0].pearson_distance < 1e-3
        assert find_space_group(result.crystals[0].atoms).number == number


def test_accepted_crystals_obey_all_limits_and_repeat():
    volume = DIAMOND.get_volume() / 2
    smooth = np.convolve(radial_distribution(DIAMOND), np.full(5, 0.2), "same")  # as blurred as a decoded one

    def search(seed):
        options = {"natoms": range(1, 7), "n_proposals": 800, "n_steered": 12, "threshold": 0.3, "min_distance": 2.1}
        return reconstruct(smooth, volume, **options, volume_tolerance=0.08, rng=np.random.default_rng(seed))

    result, again = search(5), search(5)
    assert len(result.crystals) >= 2
    for crystal, twin in zip(result.crystals, again.crystals, strict=True):
        np.testing.assert_array_equal(crystal.atoms.positions, twin.atoms.positions)
        np.testing.assert_array_equal(crystal.atoms.cell.array, twin.atoms.cell.array)
        assert crystal.pearson_distance == twin.pearson_distance <= 0.3
        assert min_distance(crystal.atoms) >= 2.1 - 1e-9
        assert crystal.atoms.get_volume() / len(crystal.atoms) == pytest.approx(volume, rel=0.082)
        assert np.isfinite(crystal.atoms.positions).all()
        assert crystal.atoms.cell.handedness == 1
    distances = [crystal.pearson_distance for crystal in result.crystals]
    assert distances == sorted(distances)
    counts = result.counts
    assert counts == again.counts
    assert counts["proposed"] == counts["overlapping"] + counts["screened"]
    assert counts["screened"] == counts["unpromising"] + counts["steered"]
    lost = ("too_close", "wrong_volume", "wrong_symmetry", "dissimilar", "duplicate", "non_finite")
    assert counts["steered"] == counts["abandoned"] + counts["accepted"] + sum(counts[name] for name in lost)


def test_distinct_drops_copies_in_other_cells_only():
    diamond = bulk("Si")
    turned = diamond.repeat((2, 1, 1))
    turned.rotate(30, "z", rotate_cell=True)
    expanded = bulk("Si", a=5.5)
    crystals = [diamond, turned, expanded, bulk("Si", "fcc", a=4.3)]
    assert distinct(crystals, radial_distribution(crystals)) == [0, 2, 3]


def test_unsound_crystals_are_counted_and_left_out(proposals):
    cells, coordinates = proposals.cells.copy(), proposals.coordinates.copy()
    free = int(np.flatnonzero(proposals.tables.n_free[proposals.template] > 0)[0])
    coordinates[free, 0] = np.nan
    flat = (free + 1) % len(proposals)
    cells[flat, 2] = cells[flat, 1]
    infinite = (free + 2) % len(proposals)
    cells[infinite, 0, 0] = np.inf
    steered = steer(proposals.moved(cells, coordinates), target_of(DIAMOND), stages=[Stage(0.3, 5.0, 2, 1)])
    assert steered.n_unsound == 3
    assert {free, flat, infinite}.isdisjoint(steered.kept.tolist())
    assert len(steered.kept) == len(proposals) - 3
    assert np.isfinite(steered.crystals.cells).all()
    assert np.isfinite(steered.loss).all()


def test_coinciding_atoms_are_counted_not_fatal():
    entry = template(1, ("a", "a"))
    crystals = crystals_of([entry] * 2, [np.eye(3) * 3.4] * 2, [np.zeros(6), np.array([0, 0, 0, 0.5, 0.5, 0.5])])
    steered = steer(crystals, target_of(DIAMOND))
    assert (steered.n_unsound, steered.kept.tolist()) == (1, [1])
    assert np.isfinite(steered.crystals.coordinates).all()


def test_a_loss_that_is_not_finite_stops_no_batch():
    entry = template(1, ("a",))
    crystals = crystals_of([entry], [np.eye(3) * 2.7], [np.zeros(3)])
    steered = steer(crystals, Target(np.full(200, np.nan), SETTINGS, Limits(2.0, 20.0, 0.1)))
    assert (len(steered.kept), steered.n_unsound) == (0, 1)


def test_default_min_distance_follows_the_target_below_the_bond():
    target, volume = radial_distribution(DIAMOND), DIAMOND.get_volume() / 2
    assert default_min_distances(Composition.parse("Si"), target, volume, SETTINGS) == pytest.approx(2.0, abs=0.05)
    chromium = bulk("Cr", "bcc", 2.88)  # bonds of 2.49 Å, shorter than twice the covalent radius, 2.78 Å
    rdf = radial_distribution(chromium)
    assert default_min_distances(Composition.parse("Cr"), rdf, chromium.get_volume(), SETTINGS) < 2.4


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"composition": ("Si", "C")}, ReconstructionError, "chemical formula"),
        ({"composition": "Xx"}, ReconstructionError, "chemical formula"),
        ({"composition": "SiC"}, ValueError, r"composition CSi ask for \(3, 200\)"),
        ({"volume_per_atom": 4.0}, ReconstructionError, "close packing"),
        (
            {"natoms": (1,), "prior": WyckoffPrior(spacegroups=(227,))},
            ReconstructionError,
            "1 atoms .* 227, which need at least 2",
        ),
        ({"natoms": ()}, ValueError, "natoms"),
        ({"natoms": (0, 2)}, ValueError, "natoms"),
        ({"volume_per_atom": np.nan}, ValueError, "volume_per_atom"),
        ({"min_distance": -1.0}, ValueError, "min_distance"),
        ({"threshold": 0.0}, ValueError, "threshold"),
        ({"n_steered": 0}, ValueError, "n_steered"),
        ({"target_rdf": np.ones(200)}, ValueError, "everywhere"),
        ({"target_rdf": np.ones(10)}, ValueError, "shape"),
        ({"target_rdf": np.full(200, np.nan)}, ValueError, "not finite"),
    ],
)
def test_refuses_requests_that_make_no_sense(options, error, match):
    arguments = {"target_rdf": radial_distribution(DIAMOND), "volume_per_atom": DIAMOND.get_volume() / 2} | options
    with pytest.raises(error, match=match):
        reconstruct(**arguments, rng=np.random.default_rng(0))


def test_refuses_unknown_groups_and_letters():
    with pytest.raises(ValueError, match="1 to 230"):
        space_group(231)
    with pytest.raises(ReconstructionError, match="no Wyckoff position z"):
        template(227, ("z",))
    with pytest.raises(ValueError, match="uniform_share"):
        WyckoffPrior(uniform_share=2.0)
    with pytest.raises(ValueError, match="spacegroups"):
        WyckoffPrior(spacegroups=(0,))


def test_only_whole_loops_are_compiled_on_their_own():
    """What they call is inlined, or a run would round otherwise in the process that compiles than in later ones."""
    modules = [sys.modules[f"ase_hvae.reconstruct.{name}"] for name in ("descent", "drawing", "kernels")]
    functions = {name: value for module in modules for name, value in vars(module).items() if is_jitted(value)}
    assert len(functions) > 20
    alone = {name for name, value in functions.items() if not value.targetoptions.get("forceinline")}
    assert alone == {"descend", "draw", "rdfs", "shortest_distances"}
