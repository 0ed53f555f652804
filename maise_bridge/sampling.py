"""Pools of structures to label: what a search will meet around known crystals, drawn reproducibly."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from maise_bridge.fingerprints import RANGE, Fingerprints, pair_distances, reduced_formula
from maise_bridge.labelling import structure_id
from maise_bridge.sampling_families import FAMILIES, Parent

logger = logging.getLogger(__name__)
CLOSEST = 0.75  # of the shortest distance between the same species in the known crystals
_ATTEMPTS = 40  # draws per structure wanted
_TAG = re.compile(rf"^({'|'.join(tag for _, tag, _ in FAMILIES.values())})_")
_Key = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Pool:
    """Structures to label.

    Attributes
    ----------
    structures : tuple of Atoms
        With `config_type` in `info`, a tag that names family and parent.
    wanted, found : mapping of str to int
        Structures of each family, as asked for and as there are.
    """

    structures: tuple[Atoms, ...]
    wanted: Mapping[str, int]
    found: Mapping[str, int]


def sample_pool(
    known: Sequence[Atoms],
    *,
    n: int = 200,
    seed: int = 0,
    max_atoms: int = 16,
    families: Sequence[str] = tuple(FAMILIES),
    closest: float = CLOSEST,
    exclude: Sequence[Atoms] = (),
) -> Pool:
    """Draw structures around known crystals.

    The pool does not depend on the order of `known`. No two structures are the same crystal, and none is one of
    `known` or `exclude`.

    Parameters
    ----------
    known : sequence of Atoms
        Crystals of any elements. Larger ones than `max_atoms` are reduced to primitive cells, and passed over with a
        warning if these are too large, too.
    n : int
        Structures wanted; a family that runs dry makes the pool smaller, see `Pool.found`.
    seed : int
    max_atoms : int
        Largest structure.
    families : sequence of str
        Of ``sampling_families.FAMILIES``; they share `n` in its proportions.
    closest : float
        Shortest distance allowed, as a share of the shortest one in `known` between the same species; for species
        that do not meet there, of the sum of their covalent radii.
    exclude : sequence of Atoms
        Further structures not to draw, such as those labelled already.

    Returns
    -------
    Pool

    Raises
    ------
    ValueError
        If a number or family is out of range, or no known crystal is small enough or is a crystal.
    """
    _check(n, max_atoms, families, closest)
    check_crystals(known, "known structure")
    check_crystals(exclude, "structure to exclude")
    parents = _parents(known, max_atoms)
    limits = shortest_distances([parent.atoms for parent in parents])
    seen = Fingerprints()
    for atoms in (*known, *exclude):
        seen.add(atoms)
    wanted = _quotas(n, families)
    structures: list[Atoms] = []
    found = {}
    for name in families:
        drawn = _draw(name, wanted[name], parents, max_atoms, seed, limits, closest, seen)
        structures += drawn
        found[name] = len(drawn)
    return Pool(tuple(structures), wanted, found)


def check_crystals(structures: Sequence[Atoms], what: str) -> None:
    """Raise ValueError, with `what` and the index, if a structure is not finite or not periodic in three dimensions."""
    for number, atoms in enumerate(structures):
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            raise ValueError(f"{what} {number}: positions or cell not finite; leave it out")
        if len(atoms) == 0 or not atoms.pbc.all() or atoms.cell.rank < 3:
            raise ValueError(
                f"{what} {number}: is no crystal ({len(atoms)} atoms, pbc {atoms.pbc.tolist()}); leave it out"
            )


def shortest_distances(structures: Sequence[Atoms]) -> dict[_Key, float]:
    """Shortest distance between atoms of each pair of atomic numbers, smaller first; Å."""
    shortest: dict[_Key, float] = {}
    for atoms in structures:
        for key, lengths in pair_distances(atoms, RANGE).items():
            shortest[key] = min(shortest.get(key, np.inf), float(lengths.min()))
    return shortest


def too_close(atoms: Atoms, limits: Mapping[_Key, float], closest: float) -> bool:
    """Whether two atoms are closer than `closest` times their limit (Å), or the sum of covalent radii without one."""
    for (first, second), lengths in pair_distances(atoms, RANGE).items():
        limit = limits.get((first, second), covalent_radii[first] + covalent_radii[second])
        if lengths.min() < closest * limit:
            return True
    return False


def _check(n: int, max_atoms: int, families: Sequence[str], closest: float) -> None:
    if n < 1 or max_atoms < 1:
        raise ValueError(f"n is {n}, max_atoms {max_atoms}; both must be at least 1")
    if not 0 < closest <= 1:
        raise ValueError(f"closest is {closest:g}; it is a share of the known distances, above 0 and up to 1")
    unknown = [name for name in families if name not in FAMILIES]
    if unknown or not families or len(set(families)) < len(families):
        what = f"family {unknown[0]!r} is unknown" if unknown else f"families {list(families)} are none or repeated"
        raise ValueError(f"{what}; there are {', '.join(FAMILIES)}")


def _parents(known: Sequence[Atoms], max_atoms: int) -> list[Parent]:
    """Known crystals that are small enough, each once, in an order of their own."""
    from maise_bridge.labelling.calculators import primitive_cell

    parents: dict[str, Parent] = {}
    for atoms in known:
        identity = structure_id(atoms).removeprefix("sha256-")
        small = atoms if len(atoms) <= max_atoms else primitive_cell(atoms)
        name = _parent_name(atoms, identity)
        if len(small) > max_atoms:
            logger.warning(
                "%s has %d atoms in its primitive cell, more than %d; passed over", name, len(small), max_atoms
            )
            continue
        parents[identity] = Parent(name, Atoms(small.numbers, cell=small.cell, positions=small.positions, pbc=True))
    if not parents:
        raise ValueError(f"none of {len(known)} known crystals has at most {max_atoms} atoms; raise max_atoms")
    return [parent for _, parent in sorted(parents.items())]


def _parent_name(atoms: Atoms, identity: str) -> str:
    """Name of a crystal, or its tag, or its formula with a part of its identity."""
    for key in ("name", "config_type"):
        words = _TAG.sub("", str(atoms.info.get(key, ""))).split()
        if words:
            return "-".join(words)
    return f"{atoms.get_chemical_formula()}-{identity[:6]}"


def _quotas(n: int, families: Sequence[str]) -> dict[str, int]:
    """Shares of `n` in whole numbers (largest remainders)."""
    shares = np.array([FAMILIES[name][2] for name in families])
    exact = n * shares / shares.sum()
    counts = np.floor(exact).astype(int)
    for place in np.argsort(counts - exact, kind="stable")[: n - counts.sum()]:
        counts[place] += 1
    return {name: int(count) for name, count in zip(families, counts, strict=True)}


def _draw(
    name: str,
    count: int,
    parents: Sequence[Parent],
    max_atoms: int,
    seed: int,
    limits: Mapping[_Key, float],
    closest: float,
    seen: Fingerprints,
) -> list[Atoms]:
    """Structures of one family, from one parent after the other."""
    family, tag, _ = FAMILIES[name]
    place = list(FAMILIES).index(name)
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(place,))).permutation(len(parents))
    drawn: list[Atoms] = []
    for attempt in range(_ATTEMPTS * max(count, len(parents)) if count else 0):
        parent = parents[order[attempt % len(parents)]]
        number = attempt // len(parents)
        key = (place, int(structure_id(parent.atoms).removeprefix("sha256-")[:8], 16), number)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
        atoms = family(parent, rng, max_atoms, number)
        if atoms is None or too_close(atoms, limits, closest) or not seen.add(atoms):
            continue
        group = atoms.info.pop("space_group", None)
        origin = parent.name if group is None else f"{reduced_formula(atoms)}_{group}"
        atoms.info = {"config_type": f"{tag}_{origin}", "parent": parent.name}
        drawn.append(atoms)
        if len(drawn) == count:
            break
    return drawn
