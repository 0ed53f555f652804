"""Templates and crystals as plain arrays, padded to the largest, for the compiled loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from ase import Atoms

from ase_hvae.rdf import channel_table
from ase_hvae.reconstruct.wyckoff import Template

FAMILIES = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "hexagonal", "cubic")
MAX_STRAINS = 6


class Tables(NamedTuple):
    """Templates, padded to the largest.

    Attributes
    ----------
    n_atoms, n_free, n_strains, family : ndarray
        Shape (n_templates,), int64; `family` counts in FAMILIES.
    primitive : ndarray
        Shape (n_templates, 3, 3): times the conventional cell it is the primitive one.
    offset, matrix, start, n_own : ndarray
        Shapes (n_templates, n_atoms, 3), (n_templates, n_atoms, 3, 3), (n_templates, n_atoms) twice: the scaled
        positions of an atom are ``offset + matrix[:, :n_own] u[start : start + n_own]``.
    orbit_size : ndarray
        Shape (n_templates, n_atoms): size of the orbit for the first atom of each orbit, 0 for the others.
    strains : ndarray
        Shape (n_templates, 6, 3, 3): strains that keep the point group.
    species : ndarray
        Shape (n_templates, n_atoms), int64: species of each atom, padded with -1.
    channels : ndarray
        Shape (n_species, n_species), int64: channel of g(r) of a pair of species.
    pair_counts : ndarray
        Shape (n_templates, n_channels): ordered pairs of atoms of a channel in one cell.
    """

    n_atoms: np.ndarray
    n_free: np.ndarray
    n_strains: np.ndarray
    family: np.ndarray
    primitive: np.ndarray
    offset: np.ndarray
    matrix: np.ndarray
    start: np.ndarray
    n_own: np.ndarray
    orbit_size: np.ndarray
    strains: np.ndarray
    species: np.ndarray
    channels: np.ndarray
    pair_counts: np.ndarray


def tabulate(templates: Sequence[Template]) -> Tables:
    """Return the templates as arrays."""
    n_templates, n_atoms = len(templates), max((entry.n_atoms for entry in templates), default=1)
    offset, matrix = np.zeros((n_templates, n_atoms, 3)), np.zeros((n_templates, n_atoms, 3, 3))
    start, n_own = np.zeros((2, n_templates, n_atoms), dtype=np.int64)
    orbit_size, strains = np.zeros((n_templates, n_atoms)), np.zeros((n_templates, MAX_STRAINS, 3, 3))
    channels = channel_table(1 + max((int(entry.species.max()) for entry in templates), default=0))
    species = np.full((n_templates, n_atoms), -1)
    for row, entry in enumerate(templates):
        species[row, : entry.n_atoms] = entry.species
        offset[row, : entry.n_atoms] = entry.offset
        strains[row, : len(entry.strains)] = entry.strains
        atom = column = 0
        for size, width in zip(entry.orbit_sizes, entry.orbit_freedom, strict=True):
            orbit = slice(atom, atom + size)
            matrix[row, orbit, :, :width] = entry.matrix[orbit, :, column : column + width]
            start[row, orbit], n_own[row, orbit], orbit_size[row, atom] = column, width, size
            atom, column = atom + size, column + width
    numbers, pair_counts = (
        (species[:, :, None] == np.arange(len(channels))).sum(1),
        np.zeros((n_templates, channels.max() + 1)),
    )
    for (a, b), channel in np.ndenumerate(channels):
        pair_counts[:, channel] += numbers[:, a] * numbers[:, b]
    return Tables(
        np.array([entry.n_atoms for entry in templates], dtype=np.int64),
        np.array([entry.n_free for entry in templates], dtype=np.int64),
        np.array([len(entry.strains) for entry in templates], dtype=np.int64),
        np.array([FAMILIES.index(entry.group.family) for entry in templates], dtype=np.int64),
        np.array([entry.group.primitive for entry in templates], dtype=float).reshape(-1, 3, 3),
        offset,
        matrix,
        start,
        n_own,
        orbit_size,
        strains,
        species,
        channels,
        pair_counts,
    )


@dataclass(frozen=True, eq=False)
class Crystals:
    """Crystals of some templates.

    Attributes
    ----------
    templates : tuple of Template
        The templates that the crystals may have.
    tables : Tables
        The same as arrays.
    template : ndarray
        Shape (n_crystals,), int64: the template of each crystal.
    cells : ndarray
        Shape (n_crystals, 3, 3): primitive cells, rows a, b, c; Å.
    coordinates : ndarray
        Shape (n_crystals, n_free): free coordinates, padded with 0.
    """

    templates: tuple[Template, ...]
    tables: Tables
    template: np.ndarray
    cells: np.ndarray
    coordinates: np.ndarray

    def __len__(self) -> int:
        return len(self.template)

    @property
    def volumes_per_atom(self) -> np.ndarray:
        """Shape (n_crystals,); Å^3."""
        return np.abs(np.linalg.det(self.cells)) / self.tables.n_atoms[self.template]

    def select(self, index: np.ndarray) -> Crystals:
        """Return the crystals at the positions `index`."""
        return replace(
            self, template=self.template[index], cells=self.cells[index], coordinates=self.coordinates[index]
        )

    def moved(self, cells: np.ndarray, coordinates: np.ndarray) -> Crystals:
        """Return the same templates with other cells and free coordinates."""
        return replace(self, cells=cells, coordinates=coordinates)

    def entry(self, index: int) -> Template:
        """Return the template of one crystal."""
        return self.templates[self.template[index]]

    def atoms(self, index: int, species: str | Sequence[str]) -> Atoms:
        """Return one crystal as Atoms with wrapped positions, given the chemical symbols of the species."""
        entry = self.entry(index)
        scaled = entry.matrix @ self.coordinates[index, : entry.n_free] + entry.offset
        symbols = np.atleast_1d(species)[entry.species].tolist()
        return Atoms(symbols, scaled_positions=scaled % 1.0, cell=self.cells[index], pbc=True)


def crystals_of(
    templates: Sequence[Template], cells: Sequence[np.ndarray], coordinates: Sequence[np.ndarray]
) -> Crystals:
    """Return crystals given one by one as template, primitive cell and free coordinates."""
    free = np.zeros((len(templates), max((entry.n_free for entry in templates), default=0)))
    for row, u in zip(free, coordinates, strict=True):
        row[: len(u)] = u
    return Crystals(tuple(templates), tabulate(templates), np.arange(len(templates)), np.array(cells, float), free)
