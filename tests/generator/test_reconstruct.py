"""Reconstruction: tables, proposals, batched RDF, steering, and finding known crystals from their own RDF."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from ase_hvae.errors import ReconstructionError
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.reconstruct import WyckoffPrior, default_min_distance, reconstruct
from ase_hvae.reconstruct.accept import distinct, keeps_space_group
from ase_hvae.reconstruct.propose import pack, propose
from ase_hvae.reconstruct.screen import Smearing, find_pairs, min_distances
from ase_hvae.reconstruct.steer import Limits, Stage, _linearise, steer
from ase_hvae.reconstruct.wyckoff import draw_letters, feasible, space_group, template
from ase_hvae.structures import min_distance
from ase_hvae.symmetry import space_group as find_space_group

SETTINGS = RDFSettings()
SOME_GROUPS = (1, 2, 5, 12, 15, 38, 43, 64, 88, 121, 141, 148, 167, 180, 191, 194, 206, 217, 227, 230)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(3)
    templates = WyckoffPrior(spacegroups=SOME_GROUPS).draw(range(1, 9), 60, rng)
    proposals = propose(templates, 1, 20.0, 0.1, 2.0, rng)
    return proposals.select(torch.nonzero(min_distances(proposals, 1.5) >= 1.5)[:, 0])


def target_of(atoms: Atoms) -> tuple[np.ndarray, float]:
    return radial_distribution(atoms), atoms.get_volume() / len(atoms)


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
    assert template(227, ("a",)).wyckoffs == ("8a",)
    assert not feasible(227, 1)
    assert draw_letters(225, 1, np.random.default_rng(0)) in {("a",), ("b",)}


def test_proposals_have_the_space_group_they_were_drawn_for(batch):
    for index, entry in enumerate(batch.templates):
        atoms = batch.atoms(index, "Si")
        assert keeps_space_group(entry, atoms)
        found = find_space_group(atoms, symprec=1e-3)
        # spglib may find more operations, never fewer
        assert found.n_operations >= len(entry.group.rotations)
        assert atoms.get_volume() / len(atoms) == pytest.approx(20.0, rel=0.1001)


def test_batched_rdf_agrees_with_the_one_of_atoms(batch):
    smearing = Smearing(radial_distribution(bulk("Si")), SETTINGS, SETTINGS.sigma)
    ours = smearing.rdf(batch, find_pairs(batch, smearing.cutoff)).numpy()
    reference = radial_distribution([batch.atoms(i, "Si") for i in range(len(batch))])
    # pairs are put on a grid of sigma / 2.5: errors of a few thousandths of the peak
    assert np.abs(ours - reference).max() < 5e-3 * reference.max()


def test_gradient_of_the_loss_agrees_with_finite_differences(batch):
    smearing = Smearing(radial_distribution(bulk("Si")), SETTINGS, 0.3)
    limits = Limits(2.2, 22.0, 0.02)
    problem = _linearise(batch, smearing, limits)
    n_free = batch.coordinates.shape[1]
    rng = np.random.default_rng(0)
    direction = torch.from_numpy(rng.normal(size=tuple(problem.gradient.shape)))

    def loss(size):
        step = size * direction / problem.scales
        strain = torch.einsum("bq,bqij->bij", step[:, n_free:], batch.strains)
        moved = batch.moved(batch.cells @ torch.linalg.matrix_exp(strain), batch.coordinates + step[:, :n_free])
        return _linearise(moved, smearing, limits).loss

    numeric = (loss(1e-4) - loss(-1e-4)) / 4e-4  # the gradient is that of half of the squares
    exact = (problem.gradient * direction).sum(1)
    error = (numeric - exact).abs() / exact.abs().clamp(min=0.05 * float(exact.abs().max()))
    assert float(error.max()) < 0.03  # the smearing's grid


def test_space_group_never_drops_while_steering(batch):
    target, volume = target_of(bulk("Si"))
    steered = steer(batch, target, SETTINGS, Limits(2.0, volume, 0.1))
    assert len(steered.batch) == len(batch)
    for index, entry in enumerate(steered.batch.templates):
        assert keeps_space_group(entry, steered.batch.atoms(index, "Si"), tolerance=1e-8)
    before = _linearise(batch, Smearing(target, SETTINGS, 0.0), Limits(2.0, volume, 0.1)).loss
    assert float((steered.loss < before).double().mean()) > 0.9


def test_loss_never_rises_within_a_stage(batch):
    target, volume = target_of(bulk("Si"))
    losses = [
        steer(batch, target, SETTINGS, Limits(2.0, volume, 0.1), stages=[Stage(0.3, 6.0, n, 1.0)]).loss
        for n in (0, 1, 4, 8)
    ]
    for earlier, later in itertools.pairwise(losses):
        assert bool((later <= earlier).all())


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
    target, volume = target_of(atoms)
    species = atoms.symbols[0]
    rng = np.random.default_rng(0)
    result = reconstruct(target, volume, species=species, natoms=(1, 2), n_proposals=600, n_steered=16, rng=rng)
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
        target, volume = target_of(atoms)
        rng = np.random.default_rng(1)
        result = reconstruct(target, volume, natoms=(4, 8), prior=prior, n_proposals=150, n_steered=8, rng=rng)
        assert result.crystals[0].pearson_distance < 1e-3
        assert find_space_group(result.crystals[0].atoms).number == number


def test_prior_learns_from_structures():
    prior = WyckoffPrior.from_structures([bulk("Si"), bulk("Cu"), bulk("Mg")], uniform_share=0.0)
    assert [number for number, _ in prior.learned] == [227, 225, 194]
    drawn = prior.draw((2,), 50, np.random.default_rng(0))
    assert {entry.group.number for entry in drawn} == {227, 194}


def test_accepted_crystals_obey_all_limits_and_repeat():
    target, volume = target_of(bulk("Si"))
    smooth = np.convolve(target, np.full(5, 0.2), "same")  # as blurred as a decoded one

    def search(seed):
        options = {"natoms": range(1, 7), "n_proposals": 400, "n_steered": 12, "threshold": 0.3, "min_distance": 2.1}
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
    assert distinct([diamond, turned, expanded, bulk("Si", "fcc", a=4.3)], SETTINGS) == [0, 2, 3]


def test_non_finite_crystals_are_counted_and_left_out(batch):
    target, volume = target_of(bulk("Si"))
    coordinates = batch.coordinates.clone()
    coordinates[1, 0] = torch.nan
    cells = batch.cells.clone()
    cells[2, 0, 0] = torch.inf
    steered = steer(
        batch.moved(cells, coordinates), target, SETTINGS, Limits(2.0, volume, 0.1), stages=[Stage(0.3, 5.0, 2, 1)]
    )
    assert steered.n_unsound == 2
    assert {1, 2}.isdisjoint(steered.kept.tolist())
    assert bool(torch.isfinite(steered.batch.cells).all())


def test_coinciding_atoms_are_flagged_not_fatal():
    target, volume = target_of(bulk("Si"))
    entry = template(1, ("a", "a"))
    batch = pack([entry] * 2, [np.eye(3) * 3.4] * 2, [np.zeros(6), np.array([0, 0, 0, 0.5, 0.5, 0.5])])
    steered = steer(batch, target, SETTINGS, Limits(2.0, volume, 0.1))
    assert steered.finite.tolist() == [False, True]
    assert bool(torch.isfinite(steered.batch.coordinates).all())


def test_default_min_distance_follows_the_target_below_the_bond():
    target, volume = target_of(bulk("Si"))
    assert default_min_distance("Si", target, volume, SETTINGS) == pytest.approx(2.0, abs=0.05)
    chromium = bulk("Cr", "bcc", 2.88)  # bonds of 2.49 Å, shorter than twice the covalent radius, 2.78 Å
    assert default_min_distance("Cr", *target_of(chromium), SETTINGS) < 2.4


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"species": ("Si", "C")}, ReconstructionError, "one species"),
        ({"species": "Xx"}, ReconstructionError, "chemical symbol"),
        ({"volume_per_atom": 4.0}, ReconstructionError, "close packing"),
        ({"natoms": (1,), "prior": WyckoffPrior(spacegroups=(227,))}, ReconstructionError, "1 atoms .* 227"),
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
    target, volume = target_of(bulk("Si"))
    arguments = {"target_rdf": target, "volume_per_atom": volume} | options
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
