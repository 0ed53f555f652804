"""Defaults stand in the configuration and in the stage functions; they must be the same."""

import inspect

import pytest

from ase_hvae import phonons, reconstruct, relax
from ase_hvae.config import GenerateConfig

CONFIG = GenerateConfig()


@pytest.mark.parametrize(
    ("function", "section", "names"),
    [
        (relax.relax, CONFIG.relax, {"fmax": "fmax", "optimizer": "optimizer", "max_steps": "max_steps"}),
        (phonons.compute, CONFIG.phonons, {"min_length": "min_length", "displacement": "displacement"}),
        (
            reconstruct.reconstruct,
            CONFIG.reconstruct,
            {
                "n_proposals": "n_proposals",
                "n_steered": "n_steered",
                "threshold": "pearson_threshold",
                "volume_tolerance": "volume_tolerance",
            },
        ),
    ],
)
def test_same_defaults(function, section, names):
    parameters = inspect.signature(function).parameters
    for argument, option in names.items():
        assert parameters[argument].default == getattr(section, option), argument
