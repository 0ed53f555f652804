"""Phonon band structure along the usual path, density of states, and their picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ase_hvae.phonons.harmonic import PhononResult, logged_warnings


@dataclass(frozen=True, eq=False)
class BandStructure:
    """Frequencies along straight segments between points of high symmetry, and the density of states.

    Attributes
    ----------
    qpoints : tuple of np.ndarray
        Of each segment, in units of the reciprocal vectors of the primitive cell, ``(n_points, 3)``.
    distances : tuple of np.ndarray
        Along the path, 1/Å without 2 pi, ``(n_points,)`` for each segment.
    frequencies : tuple of np.ndarray
        THz, imaginary ones negative, ``(n_points, n_bands)`` for each segment.
    ends : tuple of (str, str)
        Names of the two ends of each segment, Gamma spelled out.
    dos_frequencies, dos : np.ndarray
        THz, and states per THz and primitive cell by the tetrahedron method, ``(n_frequencies,)``.
    """

    qpoints: tuple[np.ndarray, ...]
    distances: tuple[np.ndarray, ...]
    frequencies: tuple[np.ndarray, ...]
    ends: tuple[tuple[str, str], ...]
    dos_frequencies: np.ndarray
    dos: np.ndarray


def band_structure(result: PhononResult, *, n_points: int = 51) -> BandStructure:
    """Frequencies along the path of high symmetry that SeeK-path recommends, and the density of states of the mesh.

    Parameters
    ----------
    result : PhononResult
        Phonons of any crystal, stable or not.
    n_points : int
        Points on the longest segment; the others have as many for their length.

    References
    ----------
    Hinuma et al., Comput. Mater. Sci. 128, 140 (2017).
    """
    import seekpath

    if n_points < 2:
        raise ValueError(f"n_points is {n_points}; a segment needs at least 2 points")
    primitive = result.phonon.primitive
    reciprocal = np.linalg.inv(primitive.cell).T
    with logged_warnings():
        path = seekpath.get_path_orig_cell(primitive.totuple())
        corners = [(path["point_coords"][a], path["point_coords"][b]) for a, b in path["path"]]
        lengths = [float(np.linalg.norm((np.array(b) - a) @ reciprocal)) for a, b in corners]
        step = max(lengths) / (n_points - 1)
        segments = [
            np.linspace(a, b, max(2, round(length / step) + 1)) for (a, b), length in zip(corners, lengths, strict=True)
        ]
        bands = result.phonon.run_band_structure(segments)
        dos = result.phonon.run_total_dos()
    return BandStructure(
        qpoints=tuple(segments),
        distances=tuple(np.array(distances) for distances in bands.distances),
        frequencies=tuple(np.array(frequencies) for frequencies in bands.frequencies),
        ends=tuple((a, b) for a, b in path["path"]),
        dos_frequencies=np.array(dos.frequency_points),
        dos=np.array(dos.dos),
    )


def plot_band_structure(bands: BandStructure, path: str | Path, *, title: str = "") -> None:
    """Draw bands and density of states into a picture file; the ending of its name says which kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes, side = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    ticks: dict[float, list[str]] = {}
    for distances, frequencies, ends in zip(bands.distances, bands.frequencies, bands.ends, strict=True):
        axes.plot(distances, frequencies, color="tab:blue", linewidth=1)
        for place, name in zip((distances[0], distances[-1]), ends, strict=True):
            names = ticks.setdefault(round(float(place), 8), [])
            if _symbol(name) not in names:
                names.append(_symbol(name))
    axes.set_xticks(list(ticks), ["|".join(names) for names in ticks.values()])
    axes.set_xlim(min(ticks), max(ticks))
    for place in ticks:
        axes.axvline(place, color="0.8", linewidth=0.6, zorder=0)
    axes.set_ylabel("frequency (THz), imaginary below zero")
    axes.set_title(title)
    side.plot(bands.dos, bands.dos_frequencies, color="tab:blue", linewidth=1)
    side.set_xlim(left=0)
    side.set_xlabel("states / (THz cell)")
    for panel in (axes, side):
        panel.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    figure.savefig(path, dpi=150)


def _symbol(name: str) -> str:
    """Label of a point as matplotlib typesets it."""
    if name == "GAMMA":
        return r"$\Gamma$"
    letter, _, index = name.partition("_")
    return rf"$\mathrm{{{letter}}}_{{{index}}}$" if index else letter
