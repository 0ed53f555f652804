"""How a crystal steps downhill: FIRE as ASE has it, or BFGS that never settles for a rise.

A rule serves one crystal. It is told the forces and the enthalpy at every point and answers with the step to the next;
points, forces and steps have shape (n_rows, 3).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

# ASE's constants of FIRE
_DT, _DT_MAX, _MAX_STEP = 0.1, 1.0, 0.2
_MIXING, _MIXING_FACTOR, _GROW, _SHRINK, _WAIT = 0.1, 0.99, 1.1, 0.5, 5
# BFGS
_STIFFNESS = 10.0  # eV/Å² of every coordinate before anything is known: soft, since what is stiff shows at once
_LONGEST, _SHORTEST = 0.2, 1e-4  # Å, of the largest row of a step
_NOISE = 1e-9  # eV a row; enthalpies that rise by less do not rise


class StepRule(Protocol):
    """The optimizer of one crystal."""

    def step(self, forces: np.ndarray, enthalpy: float) -> np.ndarray:
        """Next step (Å), given forces (eV/Å) and enthalpy (eV) at the point that the last one led to."""


class Fire:
    """Fast inertial relaxation engine; takes the steps of ASE's FIRE.

    References
    ----------
    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006).
    """

    def __init__(self) -> None:
        self._velocities: np.ndarray | None = None
        self._dt, self._mixing, self._n_downhill = _DT, _MIXING, 0

    def step(self, forces: np.ndarray, enthalpy: float) -> np.ndarray:
        """Next step; the enthalpy is not looked at."""
        self._velocities = self._steered(forces) + self._dt * forces
        step = self._dt * self._velocities
        length = np.sqrt(np.vdot(step, step))
        return step * (_MAX_STEP / length) if length > _MAX_STEP else step

    def _steered(self, forces: np.ndarray) -> np.ndarray:
        """Velocities turned towards the forces, or stopped where they lead uphill; adapts the time step."""
        if self._velocities is None:
            return np.zeros_like(forces)
        if not np.vdot(forces, self._velocities) > 0:
            self._dt, self._mixing, self._n_downhill = self._dt * _SHRINK, _MIXING, 0
            return np.zeros_like(forces)
        ratio = np.sqrt(np.vdot(self._velocities, self._velocities) / np.vdot(forces, forces))
        velocities = (1.0 - self._mixing) * self._velocities + self._mixing * ratio * forces
        if self._n_downhill > _WAIT:
            self._dt = min(self._dt * _GROW, _DT_MAX)
            self._mixing *= _MIXING_FACTOR
        self._n_downhill += 1
        return velocities


class Bfgs:
    """BFGS of the inverse Hessian, within a trust radius; a step that raises the enthalpy is taken back and shortened.

    The inverse Hessian stays positive definite, since what curves the wrong way is not learned; so every step begins
    downhill, and the accepted points never rise; but where the enthalpies do not fit the forces, these decide.

    References
    ----------
    Nocedal, Wright, Numerical Optimization, 2nd ed., chapter 6 (update) and 4 (trust radius).
    """

    def __init__(self) -> None:
        self._inverse: np.ndarray | None = None
        self._radius = _LONGEST
        self._forces = self._step = np.empty(0)
        self._enthalpy = np.inf
        self._misfit = np.inf  # of forces and enthalpy, eV, over the last step that was taken back
        self._at_fault = False

    def step(self, forces: np.ndarray, enthalpy: float) -> np.ndarray:
        """Next step; it may lead back first."""
        back = np.zeros_like(forces)
        if self._inverse is None:
            self._inverse = np.eye(forces.size) / _STIFFNESS
            self._forces, self._enthalpy = forces, enthalpy
        elif self._falls(forces, enthalpy):
            self._learn(self._forces - forces)
            if _longest_row(self._step) > 0.9 * self._radius:
                self._radius = min(2.0 * self._radius, _LONGEST)
            self._forces, self._enthalpy, self._misfit = forces, enthalpy, np.inf
        else:
            self._learn(self._forces - forces)
            back = -self._step
            self._radius = 0.25 * _longest_row(self._step)
            if self._radius < _SHORTEST:  # the model of the surface is of no use here
                self._inverse = np.eye(forces.size) / _STIFFNESS
                self._radius = _SHORTEST
        step = (self._inverse @ self._forces.ravel()).reshape(forces.shape)
        self._step = step * min(1.0, self._radius / max(_longest_row(step), 1e-300))
        return back + self._step

    def _falls(self, forces: np.ndarray, enthalpy: float) -> bool:
        """Whether the last step led downhill: by the enthalpies, or by the forces once the enthalpies are at fault.

        Between enthalpies and forces along the step lies the error of the trapezoidal rule, which falls with the cube
        of the step, on a smooth surface. Where a step a quarter as long, after one that was taken back, leaves more
        than an eighth of it, the enthalpies are noisy, jump, as with the mesh of k-points that follows the cell, or
        do not belong to the forces, as with few plane waves. From then on the forces decide.
        """
        by_forces = -0.5 * np.vdot(self._forces + forces, self._step)
        if self._at_fault:
            return by_forces <= 0
        rise = enthalpy - self._enthalpy
        if rise <= _NOISE * len(forces):
            return True
        misfit, self._misfit = self._misfit, abs(rise - by_forces)
        self._at_fault = by_forces <= 0 and self._misfit > misfit / 8
        return self._at_fault

    def _learn(self, gradient_change: np.ndarray) -> None:
        """Update the inverse Hessian by the last step, unless the surface curves downwards along it."""
        assert self._inverse is not None
        s, y = self._step.ravel(), gradient_change.ravel()
        curvature = s @ y
        if not curvature > 1e-3 * (s @ s):  # eV/Å²
            return
        hy = self._inverse @ y
        self._inverse += (curvature + y @ hy) / curvature**2 * np.outer(s, s)
        cross = np.outer(hy, s) / curvature
        self._inverse -= cross + cross.T


def _longest_row(step: np.ndarray) -> float:
    return float(np.sqrt(np.einsum("nx,nx->n", step, step).max()))
