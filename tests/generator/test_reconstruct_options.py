"""Options of a run that narrow the reconstruction: what is impossible is refused at once, the rest is obeyed."""

import numpy as np
import pytest

from ase_hvae.config import GenerateConfig, parse_spacegroups
from ase_hvae.errors import ConfigError, ReconstructionError
from ase_hvae.source import CrystalSource
from ase_hvae.structures import min_distance


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"natoms": "1", "spacegroups": "227"}, "1 atoms .* 227, which need at least 2"),
        ({"volume": 9.0, "min_distance": 2.6}, "close packing needs 12.43"),
        ({"min_distance": 6.0}, "close packing"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(options, match):
    with pytest.raises(ReconstructionError, match=match):
        CrystalSource.open(GenerateConfig().with_options(**options))


def test_space_groups_are_numbers_from_1_to_230():
    assert parse_spacegroups("139,191-193") == (139, 191, 192, 193)
    with pytest.raises(ConfigError, match="spacegroups = '231'"):
        GenerateConfig().with_options(spacegroups="231")
    with pytest.raises(ConfigError, match="spacegroups = 'Fd-3m'"):
        GenerateConfig().with_options(spacegroups="Fd-3m")


def test_crystals_obey_space_groups_volume_and_shortest_distance():
    options = {"spacegroups": "139,194", "volume": 19.0, "min_distance": 2.3, "natoms": "1-4", "pearson_threshold": 1.0}
    source = CrystalSource.open(GenerateConfig().with_options(n_proposals=300, n_steered=8, **options))
    candidates, counts = source.crystals(source.replicas()[0])
    assert candidates
    assert counts["accepted"] >= len(candidates)
    for candidate in candidates:
        atoms = candidate.atoms
        assert atoms.get_volume() / len(atoms) == pytest.approx(19.0, rel=0.102)
        assert min_distance(atoms) >= 2.3 - 1e-6
        assert np.isfinite(atoms.positions).all()


def test_a_replica_too_dense_for_the_distances_is_counted():
    config = GenerateConfig().with_options(n_proposals=200, n_steered=2)
    dense, *_, airy = sorted(CrystalSource.open(config).replicas(), key=lambda replica: replica.volume_per_atom)
    between = (1 + config.reconstruct.volume_tolerance) * (dense.volume_per_atom + airy.volume_per_atom) / 2
    source = CrystalSource.open(config.with_options(min_distance=float((between * np.sqrt(2)) ** (1 / 3))))
    assert source.crystals(dense) == ([], {"impossible_replicas": 1})
    assert "impossible_replicas" not in source.crystals(airy)[1]
