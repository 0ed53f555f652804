"""Points of the latent space and the replicas decoded from them."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ase_hvae.errors import ModelError
from ase_hvae.hvae import HVAE
from ase_hvae.replicas import decode
from ase_hvae.sampling import sample_around, sample_grid, sample_posterior, sample_prior


def test_grid_is_that_of_the_paper():
    grid = sample_grid()
    assert grid.shape == (225, 2)
    assert grid.max() == pytest.approx(1.6448536269514722)  # 95th percentile of the normal distribution
    assert np.diff(norm.cdf(grid[:15, 1])) == pytest.approx(0.9 / 14)
    np.testing.assert_allclose(grid, -grid[::-1], atol=1e-12)
    assert sample_grid(3, 0.5, 3).shape == (27, 3)
    assert (sample_grid(1) == 0).all()


def test_draws_have_their_moments_and_repeat():
    def draws(seed=0):
        rng = np.random.default_rng(seed)
        means, stds = np.array([[-2.0, 0.0], [2.0, 1.0]]), np.array([[0.1, 0.1], [0.1, 0.3]])
        return (
            sample_prior(4000, 2, rng),
            sample_around(np.array([1.0, -1.0]), np.array([0.5, 2.0]), 4000, rng),
            sample_posterior(means, stds, 4000, rng),
        )

    prior, around, posterior = draws()
    assert np.abs(prior.mean(0)).max() < 0.06  # 4 standard errors
    assert around.std(0) == pytest.approx([0.5, 2.0], rel=0.05)
    assert posterior.mean(0) == pytest.approx([0.0, 0.5], abs=0.15)
    assert np.abs(np.abs(posterior[:, 0]) - 2).max() < 0.6
    for first, second in zip(draws(), (prior, around, posterior), strict=True):
        assert np.array_equal(first, second)


def test_nonsense_requests_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="coverage is 1"):
        sample_grid(coverage=1.0)
    with pytest.raises(ValueError, match="n_per_axis=0"):
        sample_grid(0)
    with pytest.raises(ValueError, match="n is 0"):
        sample_prior(0, 2, rng)
    with pytest.raises(ValueError, match="must be finite"):
        sample_around(np.array([np.nan, 0]), 1.0, 3, rng)
    with pytest.raises(ValueError, match="must both be"):
        sample_posterior(np.zeros((2, 2)), np.zeros((3, 2)), 3, rng)


def test_replicas_are_physical_rows_of_the_decoder():
    model = HVAE(11, hidden=(4,))
    latents = sample_grid(4)
    replicas = decode(model, latents)
    rdf, volume = model.decode(torch.from_numpy(latents))
    assert (rdf < 0).any()
    for index, replica in enumerate(replicas):
        assert replica.index == index
        assert np.array_equal(replica.latent, latents[index])
        assert np.array_equal(replica.rdf, rdf[index].double().numpy().clip(0))
        assert replica.volume_per_atom == pytest.approx(volume[index].item())


def test_replicas_that_are_not_finite_are_refused():
    model = HVAE(11, hidden=(4,))
    with pytest.raises(ModelError, match="latents are not finite"):
        decode(model, np.array([[np.nan, 0.0]]))
    with pytest.raises(ModelError, match=r"takes \(n, 2\)"):
        decode(model, np.zeros((1, 3)))
    model.decoder.biases[-1].data[3] = torch.inf
    with pytest.raises(ModelError, match="decodes 2 of 2 latents"):
        decode(model, np.zeros((2, 2)))
