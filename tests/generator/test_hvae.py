"""Parts of the HVAE: networks, leapfrog, tempering, energy error, refusals. Its laws are in test_hvae_laws.py."""

import pytest
import torch

from ase_hvae.errors import ModelError
from ase_hvae.hvae import HVAE
from ase_hvae.hvae.leapfrog import integrate, leapfrog, start
from ase_hvae.hvae.networks import SmoothMLP

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(n_leapfrog=3, *, hidden=(7,), n_features=5, latent_dim=2, seed=1, **options):
    options = {"max_step_size": 1.5, "step_size": 0.4, "noise_floor": 0.3, **options}
    model = HVAE(
        n_features, latent_dim=latent_dim, hidden=hidden, n_leapfrog=n_leapfrog, rng=generator(seed), **options
    )
    return model.double()


def data(n=3, n_features=5, seed=2):
    return torch.randn(n, n_features, generator=generator(seed), dtype=torch.float64)


# -- networks and leapfrog -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["silu", "softplus", "tanh"])
def test_pullback_is_the_transposed_jacobian(activation):
    network = SmoothMLP((2, 6, 5, 4), activation=activation, rng=generator()).double()
    x, vector = data(3, 2), data(3, 4, seed=4)
    output, pullback = network.value_and_pullback(x)
    torch.testing.assert_close(output, network(x))
    expected = torch.stack(
        [torch.autograd.functional.vjp(network, x[i], vector[i])[1] for i in range(3)]  # reference: autograd
    )
    torch.testing.assert_close(pullback(vector), expected, rtol=0, atol=1e-14)


def test_leapfrog_known_step_of_the_harmonic_oscillator():
    def potential(z):
        return 0.5 * z.square().sum(-1), z

    point = leapfrog(start(potential, torch.tensor([1.0]), torch.tensor([0.0])), potential, torch.tensor(0.5))
    assert point.position.item() == 1 - 0.5**2 / 2
    assert point.momenta.item() == -0.25 * (1 + 0.875)


@pytest.mark.parametrize("mode", ["fixed", "free"])
def test_tempering_starts_at_beta0_and_ends_cold(mode):
    model = make_model(5, tempering=mode, beta0=0.37)
    path = model.tempering.path(model.noise)
    torch.testing.assert_close(path.log_beta0.exp().item(), 0.37, rtol=1e-6, atol=0)
    torch.testing.assert_close(2 * path.momentum_scales.log().sum(), path.log_beta0, rtol=1e-12, atol=0)
    assert ((path.momentum_scales > 0) & (path.momentum_scales <= 1)).all()


def test_energy_error_of_the_harmonic_oscillator_is_known():
    """H at (1, 0) is 1/2; one step of 0.5 ends at (0.875, -0.46875). What tempering takes out is no error."""

    def potential(z):
        return 0.5 * z.square().sum(-1), z

    begin = torch.tensor([1.0]), torch.tensor([0.0])
    for scale in (1.0, 0.5):
        end, error = integrate(potential, *begin, torch.tensor([[0.5]]), torch.tensor([scale]))
        assert error.item() == 0.5 * 0.875**2 + 0.5 * 0.46875**2 - 0.5
        assert end.momenta.item() == -0.46875 * scale


@pytest.mark.parametrize("n_leapfrog", [0, 3])
def test_energy_error_is_the_change_of_the_hamiltonian_and_vanishes_with_the_step(n_leapfrog):
    x = data(4)
    errors = []
    for step in (4e-2, 2e-2):
        model = make_model(n_leapfrog, step_size=step)
        noise = model.draw_noise(4, generator(3))
        trajectory = model.trajectory(x, noise)
        mean, log_sigma = model.posterior(x)
        begin = model.potential(mean + log_sigma.exp() * noise.position, x) + 0.5 * noise.momenta.square().sum(-1)
        change = (trajectory.end.energy - begin).detach() if n_leapfrog else torch.zeros(4).double()
        torch.testing.assert_close(trajectory.energy_error, change, rtol=0, atol=1e-12)
        assert not trajectory.energy_error.requires_grad
        errors.append(trajectory.energy_error.abs().max().item())
    if n_leapfrog:
        assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)  # third order in the step at a fixed number of steps


@pytest.mark.parametrize("n_leapfrog", [0, 3])
def test_both_estimators_have_the_same_gradient(n_leapfrog):
    """They differ by the squares of the noise, which no parameter enters."""
    gradients = []
    for estimator in ("sampled", "analytic"):
        model, x = make_model(n_leapfrog, tempering="free"), data(4)
        noise = model.draw_noise(4, generator(3))
        model.log_weight(x, noise, estimator=estimator).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 8
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    make_model(3).elbo(data(4), rng=generator())
    assert torch.equal(before, torch.get_rng_state())


def test_features_go_through_the_standardisation_and_back():
    model = make_model(3, hidden=())
    mean, scale = data(1, 5)[0], data(1, 5, seed=4)[0].exp()
    model.set_standardisation(mean, scale)
    latents = data(3, 2)
    rdf, volume = model.decode(latents)
    features = torch.cat([rdf, volume.log()[:, None]], dim=1)
    torch.testing.assert_close(model.standardise(features), model.decoder(latents))
    assert model.encode(features)[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tempering": "hot"}, "tempering is 'hot'"),
        ({"activation": "relu"}, "choose a smooth one"),
        ({"n_leapfrog": -1}, "n_leapfrog=-1"),
        ({"step_size": 2.0}, "step_size is 2.0"),
        ({"noise_floor": -1.0}, "noise_floor is -1.0"),
        ({"beta0": 1.5, "tempering": "free"}, "beta0 is 1.5"),
    ],
)
def test_nonsense_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        HVAE(5, **options)


def test_wrong_shapes_and_scales_are_refused():
    model = make_model()
    with pytest.raises(ModelError, match="features have shape"):
        model.encode(torch.zeros(2, 4))
    with pytest.raises(ModelError, match=r"takes \(n, 2\)"):
        model.decode(torch.zeros(2, 3))
    with pytest.raises(ModelError, match="not positive"):
        model.set_standardisation(torch.zeros(5), torch.zeros(5))
    with pytest.raises(ValueError, match="estimator is 'exact'"):
        model.log_weight(data(), model.draw_noise(3, generator()), estimator="exact")
