"""Pictures of a fit: objective against step, and predicted against labelled values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase.units import GPa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maise_bridge.dataset import Labels
from maise_bridge.evaluation import Residuals

_COLOURS = {"train": "tab:blue", "validation": "tab:green", "test": "tab:red"}


def plot_history(histories: Sequence[np.ndarray], path: str | Path) -> None:
    """Draw the objective on training and validation rows against the step of the fit.

    Parameters
    ----------
    histories : sequence of ndarray, shapes (n, 3)
        Step, objective on training and on validation rows (or NaN), of each member.
    path : path
        Its ending says the format, as in ``history.png``.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    validated = bool(np.isfinite(histories[0][:, 2]).any())
    for member, history in enumerate(histories):
        for column, part in ((1, "train"), (2, "validation"))[: 1 + validated]:
            label = part if member == 0 else None
            axes.plot(history[:, 0], history[:, column], color=_COLOURS[part], lw=1.0, alpha=0.8, label=label)
        if validated:
            best = int(np.argmin(history[:, 2]))
            axes.plot(history[best, 0], history[best, 2], "o", color=_COLOURS["validation"], ms=5)
    axes.set(xlabel="step (epochs of Adam, then iterations of L-BFGS)", ylabel="objective per row", yscale="log")
    axes.legend(title="dots: weights that were kept" if validated else None, frameon=False)
    figure.savefig(path, dpi=150)


def plot_parity(parts: Mapping[str, tuple[Labels, Residuals]], path: str | Path) -> None:
    """Draw predicted against labelled energies, forces and stresses.

    Parameters
    ----------
    parts : mapping of str to (Labels, Residuals)
        ``train``, ``validation``, ``test``: rows and how far the model is from them.
    path : path
        Its ending says the format, as in ``parity.png``.
    """
    figure = Figure(figsize=(12.0, 4.2), layout="constrained")
    titles = ("energy, eV/atom", "force components, eV/Å", "stress components, GPa")
    for column, (axes, title) in enumerate(zip(figure.subplots(1, 3), titles, strict=True)):
        for part, (labels, found) in parts.items():
            values, errors = _columns(labels, found)[column]
            if len(values):
                root = np.sqrt(np.mean(errors**2))
                label = f"{part}: {1e3 * root:.1f} meV/atom" if column == 0 else f"{part}: {root:.3g}"
                axes.plot(values, values + errors, ".", ms=3, alpha=0.5, color=_COLOURS.get(part), label=label)
        _finish(axes, title)
    figure.savefig(path, dpi=150)


def _columns(labels: Labels, found: Residuals) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and errors of energies per atom, force components and known stress components."""
    forces = [np.concatenate([part.ravel() for part in arrays]) for arrays in (labels.forces, found.forces)]
    known = np.isfinite(found.stresses)
    stresses = labels.stresses[known] / GPa, found.stresses[known] / GPa
    return [(labels.energies_per_atom, found.energies_per_atom), (forces[0], forces[1]), stresses]


def _finish(axes: Axes, title: str) -> None:
    limits = [*axes.get_xlim(), *axes.get_ylim()]
    axes.plot([min(limits), max(limits)], [min(limits), max(limits)], "k-", lw=0.6, zorder=0)
    axes.set(title=title, xlabel="label", ylabel="potential")
    axes.legend(title="root mean square error", frameon=False, markerscale=3)
