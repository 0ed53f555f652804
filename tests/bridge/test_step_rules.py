"""Optimizers of single crystals: known steps, quadratic surfaces, never uphill."""

import itertools

import numpy as np
import pytest

from maise_bridge.step_rules import Bfgs, Fire


def descend(rule, gradient, value, start, n_steps, limit=1e-8):
    """Points, values and steps on the way from `start` until the forces are below the limit."""
    points = [np.array(start, dtype=float)]
    for _ in range(n_steps):
        forces = -gradient(points[-1])
        if np.abs(forces).max() < limit:
            break
        points.append(points[-1] + rule.step(forces, value(points[-1])))
    return points


@pytest.fixture
def bowl():
    """Value and gradient of a quadratic surface in six dimensions with curvatures from 0.5 to 40 eV/Å²."""
    rng = np.random.default_rng(4)
    axes, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    hessian = axes @ np.diag([0.5, 2.0, 5.0, 10.0, 20.0, 40.0]) @ axes.T
    return (
        lambda x: 0.5 * x.ravel() @ hessian @ x.ravel(),
        lambda x: (hessian @ x.ravel()).reshape(x.shape),
    )


@pytest.mark.parametrize(("rule", "most"), [(Bfgs, 40), (Fire, 400)])
def test_the_minimum_of_a_bowl_is_found(bowl, rule, most):
    value, gradient = bowl
    points = descend(rule(), gradient, value, [[0.3, -0.2, 0.1], [0.5, 0.2, -0.4]], most)
    assert len(points) <= most
    np.testing.assert_allclose(points[-1], 0.0, atol=1e-7)


def test_no_row_of_a_step_is_longer_than_allowed(bowl):
    value, gradient = bowl
    points = descend(Bfgs(), gradient, value, np.full((2, 3), 3.0), 60)
    lengths = [np.linalg.norm(after - before, axis=1).max() for before, after in itertools.pairwise(points)]
    assert max(lengths) == pytest.approx(0.2)
    points = descend(Fire(), gradient, value, np.full((2, 3), 3.0), 60)
    assert max(np.linalg.norm(b - a) for a, b in itertools.pairwise(points)) == pytest.approx(0.2)


def test_bfgs_never_settles_for_a_rise():
    """A steep wall behind a flat floor: the soft start overshoots, and what rises is taken back."""

    def value(x):
        return -0.1 * x[0, 0] + 0.5 * 5000.0 * max(x[0, 0] - 0.1, 0.0) ** 2 + 0.5 * (x[0, 1] ** 2 + x[0, 2] ** 2)

    def gradient(x):
        return np.array([[-0.1 + 5000.0 * max(x[0, 0] - 0.1, 0.0), x[0, 1], x[0, 2]]])

    rule = Bfgs()
    points = descend(rule, gradient, value, [[0.0, 0.05, 0.0]], 80, limit=1e-6)
    values = np.array([value(point) for point in points])
    lowest = np.minimum.accumulate(values)
    rises = np.flatnonzero(values[1:] > lowest[:-1] + 1e-8) + 1
    assert len(rises) > 0  # the wall was hit
    for number in rises:  # the next step starts from the last point that was accepted
        accepted = points[int(np.flatnonzero(values[:number] == lowest[number - 1])[-1])]
        assert np.linalg.norm(points[number + 1] - accepted) < np.linalg.norm(points[number] - accepted)
    assert points[-1] == pytest.approx(np.array([[0.1 + 0.1 / 5000.0, 0.0, 0.0]]), abs=1e-5)


def test_bfgs_goes_on_where_the_surface_curves_downwards():
    """From beside a saddle of x⁴ - x² the way leads to a minimum, not to the saddle."""
    points = descend(
        Bfgs(),
        lambda x: np.array([[4 * x[0, 0] ** 3 - 2 * x[0, 0], x[0, 1], x[0, 2]]]),
        lambda x: x[0, 0] ** 4 - x[0, 0] ** 2 + 0.5 * (x[0, 1] ** 2 + x[0, 2] ** 2),
        [[0.01, 0.2, 0.0]],
        100,
    )
    assert points[-1] == pytest.approx(np.array([[np.sqrt(0.5), 0.0, 0.0]]), abs=1e-6)


def test_fire_begins_at_rest_with_the_time_step_of_ase():
    forces = np.array([[0.3, 0.0, 0.0]])
    assert Fire().step(forces, 0.0) == pytest.approx(0.1**2 * forces)
