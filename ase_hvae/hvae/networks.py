"""Smooth multilayer perceptrons with an analytic derivative, so that forces in latent space are cheap.

A decoder's pullback (transposed Jacobian times vector) is written out in ordinary tensor operations. One force then
costs two passes through the layers, and gradients of any quantity that contains forces flow through it as through
anything else (second derivatives need a smooth activation: no ReLU).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

Pullback = Callable[[Tensor], Tensor]


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(x)
    value = x * gate
    return value, gate + value * (1 - gate)


def _softplus(x: Tensor) -> tuple[Tensor, Tensor]:
    return softplus(x), torch.sigmoid(x)


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(x)
    return value, 1 - value * value


_VALUE: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "softplus": softplus, "tanh": torch.tanh}
_VALUE_AND_SLOPE: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "silu": _silu,
    "softplus": _softplus,
    "tanh": _tanh,
}
ACTIVATIONS = tuple(_VALUE)


class SmoothMLP(nn.Module):
    """Dense layers with a smooth activation between them; the last layer is linear.

    Parameters
    ----------
    sizes : sequence of int
        Widths from input to output; two entries make one linear map.
    activation : {"silu", "softplus", "tanh"}
    rng : torch.Generator, optional
        Source of the initial weights; a generator with seed 0 when left out, never the global one.
    """

    def __init__(self, sizes: Sequence[int], *, activation: str = "silu", rng: torch.Generator | None = None) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; choose a smooth one of {', '.join(ACTIVATIONS)}")
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes are {tuple(sizes)}; give at least two positive widths")
        rng = rng or torch.Generator().manual_seed(0)
        self.activation = activation
        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList(_uniform((n_out, n_in), n_in, rng) for n_in, n_out in pairs)
        self.biases = nn.ParameterList(_uniform((n_out,), n_in, rng) for n_in, n_out in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., sizes[0])`` to ``(..., sizes[-1])``."""
        activate = _VALUE[self.activation]
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            x = activate(linear(x, weight, bias))
        return linear(x, *last)

    def value_and_pullback(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """Return the output ``(..., sizes[-1])`` and the function v -> J(x)^T v, ``(..., sizes[0])``."""
        activate = _VALUE_AND_SLOPE[self.activation]
        *hidden, (last_weight, last_bias) = zip(self.weights, self.biases, strict=True)
        steps: list[tuple[Tensor, Tensor]] = []
        for weight, bias in hidden:
            x, slope = activate(linear(x, weight, bias))
            steps.append((weight, slope))
        output = linear(x, last_weight, last_bias)

        def pullback(vector: Tensor) -> Tensor:
            """Return the vector times the Jacobian of the output by the input."""
            vector = vector @ last_weight
            for weight, slope in reversed(steps):
                vector = (vector * slope) @ weight
            return vector

        return output, pullback


def _uniform(shape: tuple[int, ...], fan_in: int, rng: torch.Generator) -> nn.Parameter:
    bound = fan_in**-0.5
    return nn.Parameter((2 * torch.rand(shape, generator=rng) - 1) * bound)
