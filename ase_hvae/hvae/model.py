"""The Hamiltonian variational auto-encoder; without leapfrog steps it is the standard one.

Equation and symbol names follow Caterini, Doucet, Sejdinovic, NeurIPS 2018: datum x, position z, momenta rho,
potential U(z) = -log p(x|z) - log p(z), encoder q0(z|x) = N(mu(x), diag sigma(x)^2), momenta N(0, I/beta_0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ase_hvae.errors import ModelError
from ase_hvae.hvae.leapfrog import PhasePoint, integrate
from ase_hvae.hvae.networks import SmoothMLP
from ase_hvae.hvae.tempering import Tempering

LOG_2PI = math.log(2 * math.pi)
ESTIMATORS = ("analytic", "sampled")


class Noise(NamedTuple):
    """Standard normal numbers that fix one trajectory: for the position and for the momenta, ``(..., latent_dim)``."""

    position: Tensor
    momenta: Tensor


class Trajectory(NamedTuple):
    """Start and end of a trajectory and the terms of its weight.

    Attributes
    ----------
    end : PhasePoint
        (z_K, rho_K) with the potential there.
    log_sigma : Tensor, (n, latent_dim)
        Logarithm of the encoder's standard deviation.
    log_beta0 : Tensor, ()
    energy_error : Tensor, (..., n)
        What the leapfrog steps added to the Hamiltonian, in nats; no gradient flows through it.
    """

    end: PhasePoint
    log_sigma: Tensor
    log_beta0: Tensor
    energy_error: Tensor


class HVAE(nn.Module):
    """Hamiltonian variational auto-encoder for feature vectors with a Gaussian likelihood.

    A feature vector is an RDF (all bins of all its channels) followed by the logarithm of the volume per atom. Features
    go in and out in physical units; the model holds their standardisation. Densities (`elbo`, `log_likelihood`) are
    those of the standardised features, in nats.

    Parameters
    ----------
    n_features : int
        Length of a feature vector: RDF bins + 1.
    latent_dim : int
    hidden : sequence of int
        Widths of the encoder's hidden layers; the decoder has them in reverse. Empty: linear maps.
    n_leapfrog : int
        Number K of leapfrog steps; 0 is the standard VAE.
    tempering : {"none", "fixed", "free"}
    activation : {"silu", "softplus", "tanh"}
    step_size, max_step_size : float
        Starting value and upper bound of the step sizes in units of the encoder's sigma(x). Leapfrog is stable
        below twice the width of the true posterior; the bound leaves room for a sigma(x) that is twice too wide.
    shared_step_size : bool
        One step size for all layers and dimensions instead of one each.
    noise_floor : float
        Lower bound of the learned standard deviation of each standardised feature.
    beta0 : float
        Starting inverse temperature of a tempered model.
    rng : torch.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    card : dict
        What is known about the weights (recipe, data, results); written and read by the checkpoint.

    References
    ----------
    Caterini, Doucet, Sejdinovic, Hamiltonian Variational Auto-Encoder, NeurIPS 2018.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(
        self,
        n_features: int,
        *,
        latent_dim: int = 2,
        hidden: Sequence[int] = (128, 64),
        n_leapfrog: int = 3,
        tempering: str = "none",
        activation: str = "silu",
        step_size: float = 0.25,
        max_step_size: float = 1.0,
        shared_step_size: bool = False,
        noise_floor: float = 0.05,
        beta0: float = 0.9,
        rng: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(n_features, latent_dim, n_leapfrog, step_size, max_step_size, noise_floor)
        self.architecture: dict[str, Any] = {
            "n_features": n_features,
            "latent_dim": latent_dim,
            "hidden": list(hidden),
            "n_leapfrog": n_leapfrog,
            "tempering": tempering,
            "activation": activation,
            "step_size": step_size,
            "max_step_size": max_step_size,
            "shared_step_size": shared_step_size,
            "noise_floor": noise_floor,
            "beta0": beta0,
        }
        self.card: dict[str, Any] = {}
        self.n_features, self.latent_dim, self.n_leapfrog = n_features, latent_dim, n_leapfrog
        self.max_step_size, self.noise_floor = max_step_size, noise_floor
        rng = rng or torch.Generator().manual_seed(0)
        self.encoder = SmoothMLP((n_features, *hidden, 2 * latent_dim), activation=activation, rng=rng)
        self.decoder = SmoothMLP((latent_dim, *reversed(hidden), n_features), activation=activation, rng=rng)
        self.tempering = Tempering(n_leapfrog, tempering, beta0)
        shape = (min(n_leapfrog, 1), 1) if shared_step_size else (n_leapfrog, latent_dim)
        ratio = step_size / max_step_size
        self.step_size_logits = nn.Parameter(torch.full(shape, math.log(ratio / (1 - ratio))))
        self.raw_noise = nn.Parameter(torch.zeros(n_features))
        self.register_buffer("feature_mean", torch.zeros(n_features))
        self.register_buffer("feature_scale", torch.ones(n_features))

    # -- features and latents ------------------------------------------------------------------------------------

    def set_standardisation(self, mean: Tensor, scale: Tensor) -> None:
        """Fix the mean and scale of each physical feature, ``(n_features,)``; scales must be positive."""
        if not (torch.isfinite(mean).all() and torch.isfinite(scale).all() and (scale > 0).all()):
            raise ModelError("feature mean or scale is not finite or not positive; check the training structures")
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(scale)

    def standardise(self, features: Tensor) -> Tensor:
        """Map physical features ``(..., n_features)`` to x = (f - mean) / scale.

        Raises
        ------
        ModelError
            If the last axis has another length than the model's features.
        """
        features = torch.as_tensor(features).to(self.feature_mean)
        if features.shape[-1:] != (self.n_features,):
            raise ModelError(
                f"features have shape {tuple(features.shape)}; this model takes {self.n_features} a datum "
                "(RDF bins + 1); use the RDF settings of the model's card"
            )
        return (features - self.feature_mean) / self.feature_scale

    @torch.no_grad()
    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q0(z|x) of physical features, both ``(n, latent_dim)``."""
        mean, log_sigma = self.posterior(self.standardise(features))
        return mean, log_sigma.exp()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean RDF ``(n, n_features - 1)`` and atomic volume ``(n,)`` in Å^3 of latents ``(n, latent_dim)``."""
        latents = torch.as_tensor(latents).to(self.feature_mean)
        if latents.ndim != 2 or latents.shape[1] != self.latent_dim:
            raise ModelError(f"latents have shape {tuple(latents.shape)}; this model takes (n, {self.latent_dim})")
        features = self.decoder(latents) * self.feature_scale + self.feature_mean
        return features[:, :-1], features[:, -1].exp()

    # -- densities -----------------------------------------------------------------------------------------------

    @property
    def noise(self) -> Tensor:
        """Standard deviation of the likelihood for each standardised feature, ``(n_features,)``."""
        return self.noise_floor + nn.functional.softplus(self.raw_noise)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu(x) and log sigma(x), ``(..., latent_dim)``, for standardised x; sigma stays in e^-6 .. e^2."""
        mean, raw = self.encoder(x).chunk(2, dim=-1)
        return mean, 4 * torch.tanh(raw / 4) - 2

    def step_sizes(self, log_sigma: Tensor) -> Tensor:
        """Return eps_k(x) = eps_max sigmoid(e_k) sigma(x), ``(K, n, latent_dim)``."""
        bounded = self.max_step_size * torch.sigmoid(self.step_size_logits)
        return bounded.expand(self.n_leapfrog, self.latent_dim)[:, None, :] * log_sigma.exp()

    @torch.no_grad()
    def halve_step_sizes(self) -> None:
        """Halve every step size in place; training does so when a trajectory runs away."""
        self.step_size_logits.copy_(torch.logit(0.5 * torch.sigmoid(self.step_size_logits)))

    def potential(self, z: Tensor, x: Tensor) -> Tensor:
        """Return U(z) = -log p(x, z), ``(...)``, for standardised x."""
        return self._energy((self.decoder(z) - x) / self.noise, z)

    def potential_and_gradient(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return U(z) ``(...)`` and its gradient ``(..., latent_dim)``, itself differentiable."""
        output, pullback = self.decoder.value_and_pullback(z)
        noise = self.noise
        residual = (output - x) / noise
        return self._energy(residual, z), z + pullback(residual / noise)

    def _energy(self, residual: Tensor, z: Tensor) -> Tensor:
        constant = self.noise.log().sum() + 0.5 * (self.n_features + self.latent_dim) * LOG_2PI
        return 0.5 * residual.square().sum(-1) + 0.5 * z.square().sum(-1) + constant

    def trajectory(self, x: Tensor, noise: Noise) -> Trajectory:
        """Run the K tempered leapfrog steps for standardised x ``(n, n_features)`` from the given noise.

        `noise` may carry leading axes: ``(..., n, latent_dim)``.
        """
        mean, log_sigma = self.posterior(x)
        path = self.tempering.path(x)
        position = mean + log_sigma.exp() * noise.position
        momenta = noise.momenta * torch.exp(-0.5 * path.log_beta0)
        if self.n_leapfrog == 0:
            end = PhasePoint(position, momenta, self.potential(position, x), torch.zeros_like(position))
            return Trajectory(end, log_sigma, path.log_beta0, torch.zeros_like(end.potential))
        end, energy_error = integrate(
            lambda z: self.potential_and_gradient(z, x),
            position,
            momenta,
            self.step_sizes(log_sigma),
            path.momentum_scales,
        )
        return Trajectory(end, log_sigma, path.log_beta0, energy_error)

    def log_weight(self, x: Tensor, noise: Noise, *, estimator: str = "sampled") -> Tensor:
        """Return log w, whose exponential has the mean p(x), for standardised x.

        log w = log p(x, z_K) + log N(rho_K|0, I) - log q0(z_0|x) - log N(rho_0|0, I/beta_0) + (l/2) log beta_0.

        Parameters
        ----------
        x : Tensor, (n, n_features)
        noise : Noise, (..., n, latent_dim)
        estimator : {"sampled", "analytic"}
            ``analytic`` puts the exact entropy of (z_0, rho_0) in the place of -log q0 - log N(rho_0): the same
            mean of log w (the ELBO), another variance; its exponential is not an unbiased evidence.

        Returns
        -------
        Tensor, (..., n)
        """
        return self.weigh(self.trajectory(x, noise), noise, estimator=estimator)

    def weigh(self, trajectory: Trajectory, noise: Noise, *, estimator: str = "sampled") -> Tensor:
        """Return log w ``(..., n)`` of a trajectory that was run from `noise`, as `log_weight` does."""
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {estimator!r}; choose one of {', '.join(ESTIMATORS)}")
        end, log_sigma, log_beta0, _ = trajectory
        position_square, momenta_square = noise.position.square().sum(-1), noise.momenta.square().sum(-1)
        if estimator == "analytic":
            position_square = torch.full_like(position_square, self.latent_dim)
            if self.n_leapfrog:  # momenta that nothing moves cancel exactly
                momenta_square = torch.full_like(momenta_square, self.latent_dim)
        squares = position_square + momenta_square
        log_q0 = -log_sigma.sum(-1) - 0.5 * squares - self.latent_dim * LOG_2PI + 0.5 * self.latent_dim * log_beta0
        log_momenta = -0.5 * end.momenta.square().sum(-1) - 0.5 * self.latent_dim * LOG_2PI
        return -end.potential + log_momenta - log_q0 + 0.5 * self.latent_dim * log_beta0

    def draw_noise(self, n: int, rng: torch.Generator, *, n_samples: int | None = None) -> Noise:
        """Draw the noise of n trajectories (times `n_samples`, as a leading axis)."""
        shape = (n, self.latent_dim) if n_samples is None else (n_samples, n, self.latent_dim)
        like = self.feature_mean
        position = torch.randn(shape, generator=rng, dtype=like.dtype)
        return Noise(position, torch.randn(shape, generator=rng, dtype=like.dtype))

    def elbo(
        self, features: Tensor, *, rng: torch.Generator, n_samples: int = 1, estimator: str = "analytic"
    ) -> Tensor:
        """Estimate the evidence lower bound E[log w] of physical features ``(n, n_features)``, ``(n,)`` in nats.

        The mean over `n_samples` trajectories a datum; differentiable in every parameter. See `log_weight`.
        """
        x = self.standardise(features)
        noise = self.draw_noise(len(x), rng, n_samples=n_samples)
        return self.log_weight(x, noise, estimator=estimator).mean(0)

    @torch.no_grad()
    def log_likelihood(
        self, features: Tensor, *, rng: torch.Generator, n_samples: int = 1000, chunk: int = 250
    ) -> Tensor:
        """Estimate log p(x) = log E[w] of physical features by importance sampling, ``(n,)`` in nats.

        Parameters
        ----------
        features : Tensor, (n, n_features)
        rng : torch.Generator
        n_samples : int
            Trajectories a datum. The mean of w is unbiased, so its logarithm is a lower bound on average; it rises
            with the number of samples.
        chunk : int
            Trajectories held in memory at once.

        References
        ----------
        Burda, Grosse, Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016.
        """
        x = self.standardise(features)
        parts = []
        for first in range(0, n_samples, chunk):
            noise = self.draw_noise(len(x), rng, n_samples=min(chunk, n_samples - first))
            parts.append(torch.logsumexp(self.log_weight(x, noise), dim=0))
        return torch.logsumexp(torch.stack(parts), dim=0) - math.log(n_samples)

    @torch.no_grad()
    def kl_per_dimension(self, features: Tensor) -> Tensor:
        """Mean KL divergence of q0(z|x) from the prior for each latent dimension, ``(latent_dim,)`` in nats."""
        mean, log_sigma = self.posterior(self.standardise(features))
        return gaussian_kl(mean, log_sigma).mean(0)


def gaussian_kl(mean: Tensor, log_sigma: Tensor) -> Tensor:
    """KL divergence of N(mean, sigma^2) from N(0, 1), elementwise."""
    return 0.5 * (mean.square() + torch.exp(2 * log_sigma) - 1) - log_sigma


def _check_sizes(
    n_features: int, latent_dim: int, n_leapfrog: int, step_size: float, max_step_size: float, noise_floor: float
) -> None:
    if n_features < 2 or latent_dim < 1 or n_leapfrog < 0:
        raise ValueError(
            f"n_features={n_features}, latent_dim={latent_dim}, n_leapfrog={n_leapfrog}; "
            "they must be at least 2, 1 and 0"
        )
    if not 0 < step_size < max_step_size:
        raise ValueError(f"step_size is {step_size}; it must lie between 0 and max_step_size={max_step_size}")
    if noise_floor < 0:
        raise ValueError(f"noise_floor is {noise_floor}; it must not be negative")
