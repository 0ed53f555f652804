"""The laws that make an HVAE right (METHOD section 3), each with a deliberate mistake that it must notice.

Every law is a function that asserts. It is run once as it stands and once with the package broken by one mutation.
float64, own seeds; models with a linear decoder have exact answers.
"""

import math
from collections import namedtuple

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ase_hvae.hvae import HVAE, Noise
from ase_hvae.hvae import leapfrog as leapfrog_module
from ase_hvae.hvae.leapfrog import PhasePoint, integrate
from ase_hvae.hvae.tempering import Tempering

MODES = ("none", "fixed", "free")

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(n_leapfrog=3, *, hidden=(7,), n_features=5, seed=1, **options):
    options = {"max_step_size": 1.5, "step_size": 0.4, "noise_floor": 0.3, **options}
    return HVAE(n_features, hidden=hidden, n_leapfrog=n_leapfrog, rng=generator(seed), **options).double()


def linear_model(mode="none", *, n_leapfrog=3, shift=0.0, **options):
    """A linear decoder and a wrong encoder: too wide (so that weights have a finite variance), off by `shift`."""
    options = {"noise_floor": 0.5, "beta0": 0.6, **options}
    model = make_model(n_leapfrog, hidden=(), n_features=3, seed=3, tempering=mode, **options)
    with torch.no_grad():
        model.encoder.weights[0][2:] = 0
        model.encoder.biases[0][2:] = 2.2
        model.encoder.biases[0][:2] += shift
    return model


def data(n=3, n_features=5, seed=2):
    return torch.randn(n, n_features, generator=generator(seed), dtype=torch.float64)


def exact_log_evidence(model, x):
    """log p(x) of x = W z + b + noise."""
    weight, bias = model.decoder.weights[0], model.decoder.biases[0]
    return MultivariateNormal(bias, weight @ weight.T + torch.diag(model.noise**2)).log_prob(x)


def exact_noise():
    """Nodes +-1 in all four directions: their mean is exact for a log w quadratic in the noise (linear models)."""
    nodes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)[:, None, :]
    return Noise(nodes[..., :2], nodes[..., 2:])


def phase_map(model, x):
    """The map (z_0, rho_0) -> (z_K, rho_K) of one datum, with step sizes fixed by x."""
    steps = model.step_sizes(model.posterior(x)[1])[:, 0]
    scales = model.tempering.path(x).momentum_scales

    def run(point):
        end, _ = integrate(lambda z: model.potential_and_gradient(z, x[0]), point[:2], point[2:], steps, scales)
        return torch.cat([end.position, end.momenta])

    return run


def determinant(model, x):
    return torch.linalg.det(torch.autograd.functional.jacobian(phase_map(model, x), data(1, 4, seed=6)[0]))


def check_evidence(model, n_samples=50_000):
    """The mean of w is p(x) within three standard errors, which are small."""
    x = data(3, 3)
    with torch.no_grad():
        noise = model.draw_noise(len(x), generator(5), n_samples=n_samples)
        ratio = torch.exp(model.log_weight(x, noise) - exact_log_evidence(model, x))
    error = ratio.std(0) / math.sqrt(n_samples)
    assert (error < 0.03).all()
    assert ((ratio.mean(0) - 1).abs() < 3 * error).all()


# -- the laws --------------------------------------------------------------------------------------------------------


def flipping_the_momenta_leads_back():
    for n_leapfrog in (1, 10):
        run = phase_map(make_model(n_leapfrog), data(1))
        begin = data(1, 4, seed=6)[0]
        flip = torch.tensor([1, 1, -1, -1], dtype=torch.float64)
        end = run(begin)
        assert (end - begin).abs().max() > 1e-2  # it did go somewhere
        assert (flip * run(flip * end) - begin).abs().max() < 1e-12  # rounding of ten steps


def leapfrog_keeps_the_volume():
    torch.testing.assert_close(determinant(make_model(4), data(1)).item(), 1.0, rtol=1e-12, atol=0)


def tempering_changes_the_volume_by_beta0():
    for mode in ("fixed", "free"):
        model = make_model(4, tempering=mode, beta0=0.5)
        expected = torch.exp(model.tempering.path(data(1)).log_beta0)  # to the power l/2 = 1
        assert expected < 0.6
        torch.testing.assert_close(determinant(model, data(1)), expected, rtol=1e-12, atol=0)


def weight_is_unbiased_for_bad_step_sizes():
    for mode in MODES:
        check_evidence(linear_model(mode, step_size=0.9))


def weight_is_unbiased_for_a_bad_encoder():
    for mode in MODES:
        check_evidence(linear_model(mode, shift=0.7))


def without_steps_it_is_the_standard_vae():
    model, x = make_model(0), data(4)
    noise = model.draw_noise(4, generator(7))
    mean, log_sigma = model.posterior(x)
    encoder, prior = Normal(mean, log_sigma.exp()), Normal(torch.zeros(2).double(), 1.0)
    z = mean + log_sigma.exp() * noise.position
    joint = Normal(model.decoder(z), model.noise).log_prob(x).sum(-1) + prior.log_prob(z).sum(-1)
    expected = {"sampled": joint - encoder.log_prob(z).sum(-1), "analytic": joint + encoder.entropy().sum(-1)}
    for estimator, value in expected.items():
        torch.testing.assert_close(model.log_weight(x, noise, estimator=estimator), value, rtol=1e-12, atol=0)


def elbo_stays_below_the_evidence():
    x = data(3, 3)
    for mode in MODES:
        for n_leapfrog in (0, 1, 3):
            model = linear_model(mode, n_leapfrog=n_leapfrog)
            assert (model.log_weight(x, exact_noise()).mean(0) < exact_log_evidence(model, x)).all()


def correlated_model(*, shared=False):
    """A linear model whose posterior is correlated (gap 0.588 at K = 0 at best) and ten leapfrog steps."""
    model = make_model(10, hidden=(), n_features=3, step_size=0.5, shared_step_size=shared)
    with torch.no_grad():
        model.decoder.weights[0].copy_(torch.tensor([[2.0, 1.8], [1.0, 1.2], [0.5, 0.5]]))
        model.encoder.weights[0].zero_()
        model.encoder.biases[0].zero_()
        model.step_size_logits += torch.randn(model.step_size_logits.shape, generator=generator(), dtype=torch.float64)
    return model


def smallest_gap(model):
    """Gap between ELBO and evidence after fitting step sizes and encoder; nats."""
    x = data(1, 3)
    solver = torch.optim.LBFGS(
        [model.step_size_logits, model.encoder.biases[0]],
        max_iter=80,
        history_size=30,
        line_search_fn="strong_wolfe",
        tolerance_change=0,
    )

    def closure():
        solver.zero_grad()
        gap = (exact_log_evidence(model, x) - model.log_weight(x, exact_noise())).mean()
        gap.backward()
        return gap

    assert closure() > 1.9
    solver.step(closure)
    return closure().item()


def ten_own_steps_close_the_gap():
    assert abs(smallest_gap(correlated_model())) < 1e-3


def small_steps_return_to_the_vae():
    """log w differs from the VAE's by the energy error of the leapfrog, of third order in the step size.

    Averaged over the sign of the momenta odd orders cancel: fourth order, faster than the second that METHOD asks for.
    """
    x = data(3)
    noise = make_model(3).draw_noise(3, generator(3))
    mirrored = noise._replace(momenta=-noise.momenta)
    vae = make_model(0).log_weight(x, noise)
    gaps = []
    for step in (4e-2, 2e-2):
        model = make_model(3, step_size=step)
        value = 0.5 * (model.log_weight(x, noise) + model.log_weight(x, mirrored))
        gaps.append((value - vae).abs().max().item())
    assert gaps[0] / gaps[1] == pytest.approx(16, rel=0.05)


def gradients_match_finite_differences():
    """Of the ELBO by weights of both networks, noise, step sizes and tempering."""
    for mode in ("fixed", "free"):
        model, x = make_model(3, hidden=(4,), n_features=3, tempering=mode), data(2, 3)
        noise = model.draw_noise(2, generator(9))
        model.log_weight(x, noise).sum().backward()
        for name, parameter in model.named_parameters():
            flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
            for i, value in enumerate(flat.tolist()):
                ends = []
                for step in (1e-6, -1e-6):
                    flat[i] = value + step
                    ends.append(model.log_weight(x, noise).sum().item())
                flat[i] = value
                # central differences: truncation and rounding are both about 1e-9 here
                assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-6), name


def more_importance_samples_tighten_the_bound():
    """The same 64 weights in groups of 1, 8 and 64: Jensen's inequality holds without noise."""
    model, x = linear_model(), data(3, 3)
    bounds = []
    for n_samples in (1, 8, 64):
        rng = generator(4)
        groups = [model.log_likelihood(x, rng=rng, n_samples=n_samples, chunk=1) for _ in range(64 // n_samples)]
        bounds.append(torch.stack(groups).mean(0))
    assert (bounds[0] < bounds[1]).all()
    assert (bounds[1] < bounds[2]).all()
    many = model.log_likelihood(x, rng=generator(0), n_samples=20_000, chunk=3000)
    assert (many - exact_log_evidence(model, x)).abs().max() < 0.03  # standard error below 0.01


def same_seed_gives_the_same_bits():
    values = [make_model(tempering="free").elbo(data(4), rng=generator(seed)) for seed in (11, 11, 12)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def estimators_share_their_mean():
    x = data(3, 3)
    for mode in MODES:
        model = linear_model(mode)
        exact = model.log_weight(x, exact_noise()).mean(0)
        with torch.no_grad():
            noise = model.draw_noise(3, generator(1), n_samples=4000)
        for estimator in ("sampled", "analytic"):
            values = model.log_weight(x, noise, estimator=estimator).detach()
            assert ((values.mean(0) - exact).abs() < 4 * values.std(0) / math.sqrt(4000)).all()


def forces_are_computed_once_per_position():
    calls = []

    def potential(z):
        calls.append(z)
        return 0.5 * z.square().sum(-1), z

    steps, scales = torch.full((5, 2), 0.1), torch.full((5,), 0.9)
    integrate(potential, torch.ones(2), torch.ones(2), steps, scales)
    assert len(calls) == 6


# -- the mistakes ----------------------------------------------------------------------------------------------------


def euler_step(point, potential, step_size):
    """One whole kick before the drift: keeps volume, not reversible."""
    momenta = point.momenta - step_size * point.gradient
    position = point.position + step_size * momenta
    return PhasePoint(position, momenta, *potential(position))


def drift_by_the_force(point, potential, step_size):
    """The drift depends on the position: phase space swells."""
    half_kicked = point.momenta - 0.5 * step_size * point.gradient
    position = point.position + step_size * half_kicked * (1 - 0.3 * point.gradient)
    energy, gradient = potential(position)
    return PhasePoint(position, half_kicked - 0.5 * step_size * gradient, energy, gradient)


def extra_force(point, potential, step_size, right=leapfrog_module.leapfrog):
    """The force at the start is computed again."""
    return right(point._replace(gradient=potential(point.position)[1]), potential, step_size)


def scales_without_root(self, like, right=Tempering.path):
    path = right(self, like)
    return path._replace(momentum_scales=path.momentum_scales**2)


def wider_draw(self, x, noise, right=HVAE.trajectory):
    """Positions are drawn from a wider distribution than log q0 says."""
    return right(self, x, noise._replace(position=1.2 * noise.position))


def without_normalisation(self, residual, z):
    return 0.5 * residual.square().sum(-1) + 0.5 * z.square().sum(-1)


def without_kinetic_energy(self, trajectory, noise, *, estimator="sampled", right=HVAE.weigh):
    end = trajectory.end
    still = end._replace(momenta=torch.zeros_like(end.momenta))
    return right(self, trajectory._replace(end=still), noise, estimator=estimator)


def common_step_sizes(self, log_sigma, right=HVAE.step_sizes):
    sizes = right(self, log_sigma)
    return sizes.mean(dim=(0, -1), keepdim=True).expand_as(sizes)


def detached_force(self, z, x, right=HVAE.potential_and_gradient):
    energy, gradient = right(self, z, x)
    return energy, gradient.detach()


def mean_of_logarithms(self, features, *, rng, n_samples=1000, chunk=250):
    return self.elbo(features, rng=rng, n_samples=n_samples, estimator="sampled").detach()


def global_draw(self, n, rng, *, n_samples=None):
    shape = (n, 2) if n_samples is None else (n_samples, n, 2)
    return Noise(torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64))


def entropy_of_one_dimension(self, trajectory, noise, *, estimator="sampled", right=HVAE.weigh):
    return right(self, trajectory, noise, estimator=estimator) - (0.5 if estimator == "analytic" else 0.0)


Law = namedtuple("Law", "law owner name mistake")
LAWS = (
    Law(flipping_the_momenta_leads_back, leapfrog_module, "leapfrog", euler_step),
    Law(leapfrog_keeps_the_volume, leapfrog_module, "leapfrog", drift_by_the_force),
    Law(tempering_changes_the_volume_by_beta0, Tempering, "path", scales_without_root),
    Law(weight_is_unbiased_for_bad_step_sizes, leapfrog_module, "leapfrog", drift_by_the_force),
    Law(weight_is_unbiased_for_a_bad_encoder, HVAE, "trajectory", wider_draw),
    Law(without_steps_it_is_the_standard_vae, HVAE, "_energy", without_normalisation),
    Law(elbo_stays_below_the_evidence, HVAE, "weigh", without_kinetic_energy),
    Law(ten_own_steps_close_the_gap, HVAE, "step_sizes", common_step_sizes),
    Law(small_steps_return_to_the_vae, leapfrog_module, "leapfrog", euler_step),
    Law(gradients_match_finite_differences, HVAE, "potential_and_gradient", detached_force),
    Law(more_importance_samples_tighten_the_bound, HVAE, "log_likelihood", mean_of_logarithms),
    Law(same_seed_gives_the_same_bits, HVAE, "draw_noise", global_draw),
    Law(estimators_share_their_mean, HVAE, "weigh", entropy_of_one_dimension),
    Law(forces_are_computed_once_per_position, leapfrog_module, "leapfrog", extra_force),
)
NAMES = [entry.law.__name__ for entry in LAWS]


@pytest.mark.parametrize("entry", LAWS, ids=NAMES)
def test_law(entry):
    entry.law()


@pytest.mark.parametrize("entry", LAWS, ids=NAMES)
def test_law_notices_a_mistake(entry, monkeypatch):
    monkeypatch.setattr(entry.owner, entry.name, entry.mistake)
    with pytest.raises(AssertionError):
        entry.law()


def test_forgotten_tempering_determinant_is_noticed(monkeypatch):
    def wrong(self, trajectory, noise, *, estimator="sampled", right=HVAE.weigh):
        return right(self, trajectory, noise, estimator=estimator) - trajectory.log_beta0

    monkeypatch.setattr(HVAE, "weigh", wrong)
    with pytest.raises(AssertionError):
        check_evidence(linear_model("free"))


def test_vae_elbo_is_the_analytic_one():
    model, x = linear_model(n_leapfrog=0), data(3, 3)
    mean, log_sigma = model.posterior(x)
    weight, noise = model.decoder.weights[0], model.noise
    spread = ((weight / noise[:, None]) ** 2 @ (2 * log_sigma).exp().T).sum(0)
    divergence = kl_divergence(Normal(mean, log_sigma.exp()), Normal(0.0, 1.0))
    expected = Normal(model.decoder(mean), noise).log_prob(x).sum(-1) - 0.5 * spread - divergence.sum(-1)
    torch.testing.assert_close(model.log_weight(x, exact_noise()).mean(0), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(model.kl_per_dimension(x), divergence.mean(0), rtol=1e-12, atol=0)


def test_a_shared_step_size_cannot_close_the_gap():
    assert smallest_gap(correlated_model(shared=True)) > 0.3
