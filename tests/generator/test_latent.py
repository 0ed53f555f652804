"""Crystals in the latent space: posterior, likelihood, interpolation, map."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from torch.distributions import MultivariateNormal

from ase_hvae import HVAEGenerator, load_model
from ase_hvae.dataset import CrystalDataset
from ase_hvae.errors import ModelError
from ase_hvae.hvae import HVAE, central_grid
from ase_hvae.latent import encode, interpolate, latent_map, log_likelihood, plot_latent_map
from ase_hvae.rdf import RDFSettings, radial_distribution
from ase_hvae.replicas import decode

pytestmark = pytest.mark.usefixtures("one_thread")
RDF = {"rmax": 5.0, "n_bins": 20, "sigma": 0.2}


def linear_model(species=("Si",)):
    """Weights with a linear decoder, whose evidence is known."""
    n_features = 20 * len(species) * (len(species) + 1) // 2 + 1
    model = HVAE(n_features, hidden=(), rng=torch.Generator().manual_seed(1), noise_floor=0.5).double()
    model.card |= {"rdf": RDF, "species": list(species)}
    return model


@pytest.fixture(scope="module")
def shipped():
    return load_model()


def test_log_likelihood_of_a_linear_model_is_the_exact_one(crystals):
    model = linear_model()
    mean, std = encode(model, crystals)
    with torch.no_grad():  # the model is as far off as random weights are: put it where the crystals are
        model.feature_mean += 0.2
        model.encoder.weights[0].zero_()
        model.encoder.biases[0].copy_(torch.tensor([0.0, 0.0, 1.5, 1.5]))
    assert mean.shape == std.shape == (4, 2)
    weight, noise = model.decoder.weights[0], model.noise
    x = model.standardise(torch.from_numpy(CrystalDataset(crystals, RDFSettings(**RDF)).features))
    exact = MultivariateNormal(model.decoder.biases[0], weight @ weight.T + torch.diag(noise**2)).log_prob(x)
    # the weights' spread at 20,000 samples leaves some 0.01
    np.testing.assert_allclose(log_likelihood(model, crystals, n_samples=20_000), exact.detach(), atol=0.05)


def test_it_depends_on_the_seed_and_not_on_the_cell(shipped, crystals):
    diamond = crystals[:1]
    first, again, other = (log_likelihood(shipped, diamond, n_samples=50, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    doubled = [make_supercell(diamond[0], [[1, 1, 0], [0, 1, 0], [0, 0, 2]])]
    np.testing.assert_allclose(log_likelihood(shipped, doubled, n_samples=50, seed=1), first, atol=1e-3)  # float32
    np.testing.assert_allclose(encode(shipped, doubled), encode(shipped, diamond), atol=1e-5)


def test_likelihood_tells_crystals_from_nonsense(shipped):
    diamond, wide, chain = bulk("Si"), bulk("Si", a=6.2), Atoms("Si", cell=[2.3, 9, 9], pbc=True)
    values = log_likelihood(shipped, [diamond, wide, chain], n_samples=200)
    assert values[0] > values[1] + 50
    assert values[0] > values[2] + 50


def test_interpolation_is_a_straight_line_with_its_ends():
    line = interpolate(np.array([0.0, 1.0]), np.array([2.0, -1.0]), 5)
    np.testing.assert_allclose(line, [[0, 1], [0.5, 0.5], [1, 0], [1.5, -0.5], [2, -1]])
    with pytest.raises(ValueError, match="n is 1"):
        interpolate(np.zeros(2), np.ones(2), 1)
    with pytest.raises(ValueError, match="the ends have shapes"):
        interpolate(np.zeros(2), np.ones(3))


def test_map_agrees_with_decoding_point_by_point(shipped, crystals):
    latents = latent_map(shipped, crystals, n_per_axis=7, extent=3.0)
    assert latents.names == ("diamond", "fcc", "bcc", "sc")
    np.testing.assert_allclose((latents.means, latents.stds), encode(shipped, crystals))
    z1, z2 = 5, 1
    (replica,) = decode(shipped, np.array([[latents.axis[z1], latents.axis[z2]]]))
    assert latents.volume_per_atom[z2, z1] == pytest.approx(replica.volume_per_atom, rel=1e-5)
    rdf = shipped.decode(torch.tensor([[latents.axis[z1], latents.axis[z2]]]))[0][0].double()
    correlations = [np.corrcoef(rdf, other)[0, 1] for other in radial_distribution(crystals, **shipped.card["rdf"])]
    assert latents.nearest[z2, z1] == np.argmax(correlations)
    assert latents.correlation[z2, z1] == pytest.approx(max(correlations), abs=1e-6)


def test_map_is_drawn(shipped, crystals, tmp_path):
    latents = latent_map(shipped, crystals, n_per_axis=9)
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        path = plot_latent_map(latents, tmp_path / f"map{suffix}")
        assert path.read_bytes().startswith(start)
    assert "latent" in (tmp_path / "map.svg").read_text()  # the labels of the axes


def test_what_does_not_fit_the_weights_is_refused(shipped, crystals):
    with pytest.raises(ModelError, match="C2-0 holds C, the weights know crystals of Si"):
        encode(shipped, [bulk("C")])
    with pytest.raises(ModelError, match="diamond holds Si, the weights know crystals of C, Si"):
        log_likelihood(linear_model(("C", "Si")), crystals)
    with pytest.raises(ModelError, match="card holds no RDF settings"):
        encode(HVAE(21), crystals)
    with pytest.raises(ValueError, match="n_samples is 0"):
        log_likelihood(shipped, crystals, n_samples=0)
    with pytest.raises(ModelError, match="3 latent dimensions; a map needs 2"):
        latent_map(HVAE(21, latent_dim=3), crystals)
    with pytest.raises(ValueError, match="n_per_axis=1"):
        latent_map(shipped, crystals, n_per_axis=1)


def test_a_binary_has_its_place_too():
    cells = [bulk("SiC", "zincblende", 4.36), bulk("SiC", "rocksalt", 4.05)]
    model = linear_model(("C", "Si"))
    assert encode(model, cells)[0].shape == (2, 2)
    assert np.isfinite(log_likelihood(model, cells, n_samples=10)).all()
    assert decode(model, central_grid(2).numpy())[0].rdf.shape == (3, 20)


def test_generator_offers_the_latent_space():
    generator = HVAEGenerator(seed=4)
    known = {atoms.info["name"]: atoms for atoms in generator.source.known}
    diamond, tin = known["diamond"], known["beta-Sn"]
    means, _ = generator.encode([diamond, tin])
    way = generator.interpolate(diamond, tin, 3)
    np.testing.assert_allclose([replica.latent for replica in way], [means[0], means.mean(0), means[1]])
    assert way[0].volume_per_atom > way[2].volume_per_atom + 2  # beta-tin is dense
    assert generator.log_likelihood(diamond, n_samples=20).shape == (1,)
    assert np.array_equal(
        generator.log_likelihood(diamond, n_samples=20),
        log_likelihood(generator.model, [diamond], n_samples=20, seed=4),
    )
    assert generator.latent_map(n_per_axis=3).names[0] == "diamond"
