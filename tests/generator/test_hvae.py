"""Laws of the HVAE (METHOD section 3), each on float64 with its own seed; linear-Gaussian models have exact answers."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ase_hvae.errors import ModelError
from ase_hvae.hvae import HVAE, Noise
from ase_hvae.hvae import leapfrog as leapfrog_module
from ase_hvae.hvae.leapfrog import PhasePoint, integrate, leapfrog, start
from ase_hvae.hvae.networks import SmoothMLP

MODES = ["none", "fixed", "free"]


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


def exact_log_evidence(model, x):
    """log p(x) of a model whose decoder is linear: x = W z + b + noise."""
    weight, bias = model.decoder.weights[0], model.decoder.biases[0]
    covariance = weight @ weight.T + torch.diag(model.noise**2)
    return MultivariateNormal(bias, covariance).log_prob(x)


def phase_map(model, x):
    """The map (z_0, rho_0) -> (z_K, rho_K) of one datum, with step sizes fixed by x."""
    _, log_sigma = model.posterior(x)
    steps, scales = model.step_sizes(log_sigma)[:, 0], model.tempering.path(x).momentum_scales
    l = model.latent_dim  # noqa: E741

    def run(point):
        end = integrate(lambda z: model.potential_and_gradient(z, x[0]), point[:l], point[l:], steps, scales)
        return torch.cat([end.position, end.momenta])

    return run


def evidence_deviation(model, x, n_samples=50_000):
    """(mean w / p(x) - 1) and its standard error for each datum."""
    with torch.no_grad():
        noise = model.draw_noise(len(x), generator(5), n_samples=n_samples)
        ratio = torch.exp(model.log_weight(x, noise) - exact_log_evidence(model, x))
    return ratio.mean(0) - 1, ratio.std(0) / math.sqrt(n_samples)


def exact_noise(latent_dim):
    """Nodes +-1 in every direction: the mean over them is exact for a log w quadratic in the noise (linear models)."""
    nodes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * (2 * latent_dim))[:, None, :]
    return Noise(nodes[..., :latent_dim], nodes[..., latent_dim:])


def linear_model(mode="none", *, n_leapfrog=3, seed=3):
    """A linear model with a deliberately wrong encoder and step size."""
    model = make_model(
        n_leapfrog, hidden=(), n_features=3, latent_dim=2, seed=seed, tempering=mode, beta0=0.6, noise_floor=0.5
    )
    with torch.no_grad():  # sigma about 1: wider than the posterior, so that weights have a finite variance
        model.encoder.weights[0][2:] = 0
        model.encoder.biases[0][2:] = 2.2
    return model


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


@pytest.mark.parametrize("n_leapfrog", [1, 10])
def test_leapfrog_is_reversible(n_leapfrog):
    model, x = make_model(n_leapfrog), data(1)
    run = phase_map(model, x)
    begin = data(1, 4, seed=6)[0]
    end = run(begin)
    flip = torch.tensor([1, 1, -1, -1], dtype=torch.float64)
    assert (end - begin).abs().max() > 1e-2  # it did go somewhere
    # rounding of ten steps
    assert (flip * run(flip * end) - begin).abs().max() < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_phase_space_volume_changes_by_tempering_only(mode):
    model, x = make_model(4, tempering=mode, beta0=0.5), data(1)
    jacobian = torch.autograd.functional.jacobian(phase_map(model, x), data(1, 4, seed=6)[0])
    log_beta0 = model.tempering.path(x).log_beta0
    assert (log_beta0 == 0) == (mode == "none")
    expected = torch.exp(0.5 * model.latent_dim * log_beta0)
    torch.testing.assert_close(torch.linalg.det(jacobian), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["fixed", "free"])
def test_tempering_starts_at_beta0_and_ends_cold(mode):
    model = make_model(5, tempering=mode, beta0=0.37)
    path = model.tempering.path(model.noise)
    torch.testing.assert_close(path.log_beta0.exp().item(), 0.37, rtol=1e-6, atol=0)
    torch.testing.assert_close(2 * path.momentum_scales.log().sum(), path.log_beta0, rtol=1e-12, atol=0)
    assert ((path.momentum_scales > 0) & (path.momentum_scales <= 1)).all()


# -- evidence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_weight_is_an_unbiased_evidence(mode):
    deviation, error = evidence_deviation(linear_model(mode), data(3, 3))
    assert (error < 0.02).all()
    assert (deviation.abs() < 3 * error).all()


def _stale_force(point, potential, step_size):
    """Broken on purpose: the second half kick uses the force at the old position."""
    momenta = point.momenta - step_size * point.gradient
    position = point.position + step_size * momenta * (1 - 0.3 * point.gradient)
    return PhasePoint(position, momenta, *potential(position))


@pytest.mark.parametrize("law", ["volume", "evidence"])
def test_broken_leapfrog_is_noticed(monkeypatch, law):
    monkeypatch.setattr(leapfrog_module, "leapfrog", _stale_force)
    if law == "volume":
        jacobian = torch.autograd.functional.jacobian(phase_map(make_model(4), data(1)), data(1, 4, seed=6)[0])
        assert abs(torch.linalg.det(jacobian) - 1) > 1e-2
    else:
        deviation, error = evidence_deviation(linear_model(), data(3, 3))
        assert (deviation.abs() > 5 * error).any()


def test_forgotten_tempering_determinant_is_noticed(monkeypatch):
    model, x = linear_model("free"), data(3, 3)
    right = model.log_weight

    def wrong(x, noise, **options):
        return right(x, noise, **options) - model.tempering.path(x).log_beta0

    monkeypatch.setattr(model, "log_weight", wrong)
    deviation, error = evidence_deviation(model, x)
    assert (deviation.abs() > 5 * error).all()


def test_without_leapfrog_it_is_the_standard_vae():
    model, x = make_model(0), data(4)
    noise = model.draw_noise(4, generator(7))
    mean, log_sigma = model.posterior(x)
    encoder = Normal(mean, log_sigma.exp())
    z = mean + log_sigma.exp() * noise.position
    likelihood = Normal(model.decoder(z), model.noise).log_prob(x).sum(-1)
    prior = Normal(torch.zeros(2).double(), 1.0)
    expected = likelihood + prior.log_prob(z).sum(-1) - encoder.log_prob(z).sum(-1)
    torch.testing.assert_close(model.log_weight(x, noise), expected, rtol=1e-12, atol=0)
    entropy = encoder.entropy().sum(-1)
    analytic = likelihood + prior.log_prob(z).sum(-1) + entropy
    torch.testing.assert_close(model.log_weight(x, noise, estimator="analytic"), analytic, rtol=1e-12, atol=0)


def test_vae_elbo_is_the_analytic_one():
    model, x = linear_model(n_leapfrog=0), data(3, 3)
    mean, log_sigma = model.posterior(x)
    encoder = Normal(mean, log_sigma.exp())
    weight, noise = model.decoder.weights[0], model.noise
    spread = ((weight / noise[:, None]) ** 2 @ (2 * log_sigma).exp().T).sum(0)
    expected = (
        Normal(model.decoder(mean), noise).log_prob(x).sum(-1)
        - 0.5 * spread
        - kl_divergence(encoder, Normal(0.0, 1.0)).sum(-1)
    )
    torch.testing.assert_close(model.log_weight(x, exact_noise(2)).mean(0), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        model.kl_per_dimension(x), kl_divergence(encoder, Normal(0.0, 1.0)).mean(0), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("mode", MODES)
def test_elbo_is_below_the_evidence_and_estimators_agree(mode):
    model, x = linear_model(mode), data(3, 3)
    exact = model.log_weight(x, exact_noise(2)).mean(0)
    assert (exact < exact_log_evidence(model, x)).all()
    with torch.no_grad():
        noise = model.draw_noise(3, generator(1), n_samples=4000)
    for estimator in ("sampled", "analytic"):
        values = model.log_weight(x, noise, estimator=estimator).detach()
        assert ((values.mean(0) - exact).abs() < 4 * values.std(0) / math.sqrt(4000)).all()


def test_importance_sampling_tightens_with_samples():
    model, x = linear_model(), data(3, 3)
    exact = exact_log_evidence(model, x).detach()
    single = torch.stack([model.log_likelihood(x, rng=generator(s), n_samples=1) for s in range(64)])
    more = torch.stack([model.log_likelihood(x, rng=generator(s), n_samples=64, chunk=20) for s in range(64)])
    many = model.log_likelihood(x, rng=generator(0), n_samples=20_000, chunk=3000)
    assert (single.mean(0) < more.mean(0)).all()
    assert (many - exact).abs().max() < 0.03  # standard error below 0.01
    assert ((more.mean(0) - exact).abs() < (single.mean(0) - exact).abs()).all()


@pytest.mark.parametrize("shared", [False, True])
def test_ten_steps_of_their_own_close_the_gap(shared):
    """The posterior is correlated, the encoder is not: gap 0.588 at K = 0. A shared step size cannot close it."""
    model = make_model(
        10, hidden=(), n_features=3, max_step_size=1.5, step_size=0.5, shared_step_size=shared, noise_floor=0.3
    )
    x = data(1, 3)
    with torch.no_grad():
        model.decoder.weights[0].copy_(torch.tensor([[2.0, 1.8], [1.0, 1.2], [0.5, 0.5]]))
        model.encoder.weights[0].zero_()
        model.encoder.biases[0].zero_()
        model.step_size_logits += torch.randn(model.step_size_logits.shape, generator=generator(), dtype=torch.float64)
    parameters = [model.step_size_logits, model.encoder.biases[0]]
    solver = torch.optim.LBFGS(
        parameters, max_iter=80, history_size=30, line_search_fn="strong_wolfe", tolerance_change=0
    )

    def closure():
        solver.zero_grad()
        gap = (exact_log_evidence(model, x) - model.log_weight(x, exact_noise(2))).mean()
        gap.backward()
        return gap

    assert closure() > 1.9
    solver.step(closure)
    gap = closure().item()
    assert gap > 0.3 if shared else abs(gap) < 1e-3


# -- gradients, seeds, refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fixed", "free"])
def test_gradients_of_the_elbo_match_finite_differences(mode):
    model, x = make_model(3, hidden=(4,), n_features=3, tempering=mode), data(2, 3)
    noise = model.draw_noise(2, generator(9))

    def loss():
        return model.log_weight(x, noise).sum()

    model.zero_grad()
    loss().backward()
    step = 1e-6
    for name, parameter in model.named_parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(len(flat)):
            value = flat[i].item()
            flat[i] = value + step
            above = loss().item()
            flat[i] = value - step
            below = loss().item()
            flat[i] = value
            # central differences: truncation and rounding are both about 1e-9 here
            assert gradient[i].item() == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-6), name


def test_small_steps_return_to_the_vae():
    """log w differs from the VAE's by the energy error of the leapfrog, of third order in the step size.

    Averaged over the sign of the momenta odd orders cancel: fourth order, faster than the second that suffices.
    """
    x = data(3)
    noise = make_model(3).draw_noise(3, generator(3))
    vae = make_model(0).log_weight(x, noise)
    gaps = []
    for step in (4e-2, 2e-2):
        model = make_model(3, step_size=step)
        mirrored = noise._replace(momenta=-noise.momenta)
        value = 0.5 * (model.log_weight(x, noise) + model.log_weight(x, mirrored))
        gaps.append((value - vae).abs().max().item())
    assert gaps[0] / gaps[1] == pytest.approx(16, rel=0.05)


def test_same_seed_same_bits():
    x = data(4)
    values = [make_model(3, tempering="free").elbo(x, rng=generator(11)) for _ in range(2)]
    assert torch.equal(*values)
    assert not torch.equal(values[0], make_model(3, tempering="free").elbo(x, rng=generator(12)))


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
