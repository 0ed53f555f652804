"""Tempering of the momenta: a path of inverse temperatures from beta_0 to 1.

References
----------
Caterini, Doucet, Sejdinovic, Hamiltonian Variational Auto-Encoder, NeurIPS 2018, section 3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

MODES = ("none", "fixed", "free")


class TemperingPath(NamedTuple):
    """log beta_0 ``()`` and the momentum scales alpha_k = sqrt(beta_{k-1} / beta_k) ``(K,)``."""

    log_beta0: Tensor
    momentum_scales: Tensor


class Tempering(nn.Module):
    """Learned or absent tempering of K leapfrog steps; always prod(alpha_k)^2 = beta_0 and 0 < beta_0 <= 1.

    Parameters
    ----------
    n_leapfrog : int
        K; zero steps are never tempered.
    mode : {"none", "fixed", "free"}
        ``none``: beta_0 = 1. ``fixed``: 1/sqrt(beta_k) is quadratic in k/K and beta_0 is learned.
        ``free``: every alpha_k = sigmoid(a_k) is learned.
    beta0 : float
        Starting value of beta_0 for ``fixed`` and ``free``.
    """

    def __init__(self, n_leapfrog: int, mode: str = "none", beta0: float = 0.9) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"tempering is {mode!r}; choose one of {', '.join(MODES)}")
        if not 0.0 < beta0 < 1.0:
            raise ValueError(f"beta0 is {beta0}; it must lie strictly between 0 and 1")
        self.n_leapfrog = n_leapfrog
        self.mode = mode if n_leapfrog else "none"
        if self.mode == "fixed":
            self.beta0_logit = nn.Parameter(torch.tensor(_logit(beta0)))
        elif self.mode == "free":
            alpha = beta0 ** (0.5 / n_leapfrog)
            self.scale_logits = nn.Parameter(torch.full((n_leapfrog,), _logit(alpha)))

    def path(self, like: Tensor) -> TemperingPath:
        """Return the current path in the dtype and on the device of `like`."""
        if self.mode == "free":
            return TemperingPath(2 * logsigmoid(self.scale_logits).sum(), torch.sigmoid(self.scale_logits))
        if self.mode == "fixed":
            log_beta0 = logsigmoid(self.beta0_logit)
            fraction = torch.linspace(0, 1, self.n_leapfrog + 1, dtype=like.dtype, device=like.device) ** 2
            hottest = torch.exp(-0.5 * log_beta0)
            root = (1 - hottest) * fraction + hottest  # 1/sqrt(beta_k)
            return TemperingPath(log_beta0, root[1:] / root[:-1])
        return TemperingPath(like.new_zeros(()), like.new_ones(self.n_leapfrog))


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
