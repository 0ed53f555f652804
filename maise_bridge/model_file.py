"""MAISE `model` files: read, check, write byte for byte; those of neural networks here, Gupta's in gupta_file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase.calculators.calculator import ReadError
from ase.data import atomic_numbers

from maise_bridge import gupta_file, model_header
from maise_bridge.basis import CAPTION, Basis, LineReader, parse_basis
from maise_bridge.gupta_file import GuptaModel

OLDEST_VERSION = 2400
FORMAT_VERSION = "maise.3.0.00"
_RANGE_TITLE = "input component range"
_WEIGHTS_TITLE = "neural network weights"
_CAPTION = "        minimum                    maximum                     range"
_MOST_SPECIES = 3


@dataclass(frozen=True, eq=False)
class MaiseModel:
    """A Behler-Parrinello neural network as MAISE stores it; energies in eV, lengths in Å.

    Attributes
    ----------
    species : tuple of str
        Chemical symbols in model order, 1 to 3.
    basis : Basis
        Symmetry functions that feed the network.
    minimum, maximum, scale : ndarray, shape (n_species, n_inputs)
        Range of each input in the training data; the network sees (G - minimum) * scale.
    weights : tuple of ndarray, shapes (n_species, n_out, n_in)
        Matrix of each layer; hidden layers apply tanh, the last is linear.
    biases : tuple of ndarray, shapes (n_species, n_out)
        Offsets of each layer.
    header : tuple of str
        Lines of the header tables, verbatim; on writing, entries that follow from the fields above are renewed.
    """

    species: tuple[str, ...]
    basis: Basis
    minimum: np.ndarray
    maximum: np.ndarray
    scale: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    header: tuple[str, ...]

    @classmethod
    def create(
        cls,
        species: Sequence[str],
        basis: Basis,
        *,
        maximum: np.ndarray,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        info: Mapping[str, str] | None = None,
    ) -> MaiseModel:
        """Make a model with MAISE's ranges (from 0 to `maximum`) and a fresh header.

        Parameters
        ----------
        species, basis, maximum, weights, biases
            See the class.
        info : mapping of str to str, optional
            Values of header entries, such as ``{"reference": ..., "train energy error": "0.004  eV/atom"}``; entries
            left out read ``-``.

        Raises
        ------
        ValueError
            If shapes disagree, something is not finite, or `info` has an unknown entry.
        """
        values = {"maise version": FORMAT_VERSION}
        for label, value in (info or {}).items():
            values[" ".join(label.split())] = value
        unknown = sorted(set(values) - set(model_header.known_labels()))
        if unknown:
            raise ValueError(f"unknown header entry {unknown[0]!r}; known: {', '.join(model_header.known_labels())}")
        values["model unique ID"] = ""  # the checksum, on writing
        maximum = np.asarray(maximum, dtype=float)
        with np.errstate(divide="ignore"):
            scale = np.where(maximum > 0, 1.0 / maximum, 1.0)
        model = cls(
            species=tuple(species),
            basis=basis,
            minimum=np.zeros_like(maximum),
            maximum=maximum,
            scale=scale,
            weights=tuple(np.asarray(matrix, dtype=float) for matrix in weights),
            biases=tuple(np.asarray(vector, dtype=float) for vector in biases),
            header=tuple(model_header.header_lines(values)),
        )
        problem = _problem(model)
        if problem:
            raise ValueError(problem)
        return model

    @property
    def architecture(self) -> tuple[int, ...]:
        """Widths of the layers, from inputs to the single output."""
        return (self.weights[0].shape[2], *(matrix.shape[1] for matrix in self.weights))

    @property
    def cutoff(self) -> float:
        """Range of the basis; Å."""
        return self.basis.cutoff

    @property
    def n_weights(self) -> int:
        """Weights and biases of all species."""
        return sum(array.size for array in (*self.weights, *self.biases))

    @property
    def unique_id(self) -> str:
        """Checksum of weights and biases, eight hexadecimal digits.

        Files written by old versions of MAISE state another one in ``info["model unique ID"]``; it is kept.
        """
        total = math.fsum(float(np.abs(array).sum()) for array in (*self.weights, *self.biases))
        return f"{int(1e11 * total) % 100_000_000:08X}"

    @property
    def info(self) -> dict[str, str]:
        """Header entries, labels with single spaces."""
        return {model_header.key(line): model_header.value(line) for line in self.header if model_header.is_entry(line)}


def read_model(path: str | Path) -> MaiseModel | GuptaModel:
    """Read a MAISE model file: a neural network or a Gupta model.

    Parameters
    ----------
    path : str or Path
        File of a network of one basis block and 1 to 3 species, or of a Gupta model of 1 or 2 species.

    Returns
    -------
    MaiseModel or GuptaModel

    Raises
    ------
    ReadError
        If the file is damaged, of another kind (Sutton-Chen, ...) or too old; the message names file and line.
    FileNotFoundError
        If there is no such file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReadError(f"{path}: no MAISE model file, it is not text ({error.reason})") from error
    reader = LineReader(text, str(path), 1)
    if _kind(reader) == "Gupta":
        return gupta_file.parse(reader)
    header = _read_header(reader)
    species, widths = _check_header(reader, header)
    ranges = _read_ranges(reader, len(species), widths[0])
    biases, weights = _read_weights(reader, len(species), widths)
    basis = _read_basis(reader)
    model = MaiseModel(species, basis, *ranges, weights=weights, biases=biases, header=tuple(header))
    problem = _problem(model)
    if problem:
        raise ReadError(f"{path}: {problem}")
    return model


def read_network(path: str | Path) -> MaiseModel:
    """Read the model file of a neural network; like :func:`read_model`, but a Gupta model is refused."""
    model = read_model(path)
    if isinstance(model, GuptaModel):
        raise ReadError(f"{path}, line 2: expected a neural network, found a Gupta model ('Gupta potential')")
    return model


def write_model(model: MaiseModel | GuptaModel, path: str | Path) -> None:
    """Write a model file that MAISE and :func:`read_model` accept; an existing file is replaced at the end.

    Raises
    ------
    ValueError
        If shapes disagree or a number is not finite; nothing is written.
    """
    problem = gupta_file.problem(model) if isinstance(model, GuptaModel) else _problem(model)
    if problem:
        raise ValueError(problem)
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(format_model(model), encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def format_model(model: MaiseModel | GuptaModel) -> str:
    """Return the text of a model file."""
    if isinstance(model, GuptaModel):
        return gupta_file.format_text(model)
    derived = _derived(model)
    if model.info.get("model unique ID"):
        del derived["model unique ID"]
    lines = [model_header.renewed(line, derived) for line in model.header]
    lines += [f"|{'':26}{_RANGE_TITLE:49}|", model_header.RULE, _CAPTION]
    ranges = np.stack([model.minimum, model.maximum, model.scale], axis=-1).reshape(-1, 3)
    lines += [f"{low: 21.16f} {high: 25.16f}  {scale: 25.16f}" for low, high, scale in ranges]
    lines += [model_header.RULE, f"|{'':24}{_WEIGHTS_TITLE:51}|", model_header.RULE]
    for s in range(len(model.species)):
        for array in (*model.biases, *model.weights):
            lines += [f"{value: 21.16f}" for value in array[s].ravel()]
    lines.append(model_header.RULE)
    return "\n".join(lines) + "\n" + model.basis.text


def _derived(model: MaiseModel) -> dict[str, str]:
    """Header entries that follow from the other fields."""
    return {
        "model unique ID": model.unique_id,
        "number of species": str(len(model.species)),
        "species types": " ".join(str(atomic_numbers[symbol]) for symbol in model.species),
        "species names": " ".join(model.species),
        "number of layers": str(len(model.architecture)),
        "architecture": " ".join(map(str, model.architecture)),
        "number of weights": str(model.n_weights),
    }


def _problem(model: MaiseModel) -> str | None:
    """What is inconsistent in a model, or None."""
    n, width = len(model.species), model.basis.n_inputs(len(model.species))
    if not 1 <= n <= _MOST_SPECIES or len(set(model.species)) != n:
        return f"species are {', '.join(model.species)}; a model has 1 to {_MOST_SPECIES} different ones"
    unknown = [symbol for symbol in model.species if atomic_numbers.get(symbol, 0) == 0]
    if unknown:
        return f"{unknown[0]!r} is no chemical element"
    expected: list[tuple[str, np.ndarray, tuple[int, ...]]]
    expected = [("minimum", model.minimum, (n, width)), ("maximum", model.maximum, (n, width))]
    expected.append(("scale", model.scale, (n, width)))
    for layer, (matrix, vector) in enumerate(zip(model.weights, model.biases, strict=True), start=1):
        n_out = 1 if layer == len(model.weights) else matrix.shape[1]
        expected += [(f"weights of layer {layer}", matrix, (n, n_out, width))]
        expected += [(f"biases of layer {layer}", vector, (n, n_out))]
        width = n_out
    for name, array, shape in expected:
        if array.shape != shape:
            return f"{name} has shape {array.shape}, expected {shape} from the basis and the species"
        if not np.isfinite(array).all():
            return f"{name} has a number that is not finite"
    return None


def _kind(reader: LineReader) -> str:
    """First word of the title on line 2, neural or Gupta."""
    expected = "a rule of dashes, the first line of a MAISE model file"
    if not reader.next(expected).startswith("---"):
        raise reader.error(expected)
    kind = reader.next("the kind of model").strip("| ").split(" ")[0]
    if kind not in ("neural", "Gupta"):
        raise reader.error(
            "a neural network ('neural network general information') or a Gupta model ('Gupta potential'); "
            "Sutton-Chen and Lennard-Jones models are not supported"
        )
    return kind


def _read_header(reader: LineReader) -> list[str]:
    lines = reader.lines[: reader.position]
    while True:
        line = reader.next(f"the title '{_RANGE_TITLE}'")
        if line.startswith("|") and line.strip("| ") == _RANGE_TITLE:
            return lines
        if not line.startswith(("|", "---")):
            raise reader.error("a line of the header tables")
        lines.append(line)


def _check_header(reader: LineReader, header: list[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Check the entries that matter; return species and widths of the layers."""
    entries = model_header.Entries(reader, header)
    _check_version(entries)
    species = entries.species(_MOST_SPECIES)
    widths = entries.integers("architecture", entries.integers("number of layers", 1)[0])
    if not 3 <= len(widths) <= 4 or widths[-1] != 1:
        raise entries.error("one or two hidden layers and one output", "architecture")
    n_weights = len(species) * sum((a + 1) * b for a, b in pairwise(widths))
    if entries.integers("number of weights", 1)[0] != n_weights:
        raise entries.error(f"number of weights {n_weights}, as the architecture says", "number of weights")
    return species, tuple(widths)


def _check_version(entries: model_header.Entries) -> None:
    version = " ".join(entries.words("maise version"))
    if "species references" in entries.places:
        raise entries.error("no 'species references' (old format, energies relative to atoms)", "species references")
    parts = version.removeprefix("maise.").split(".")
    numbers = [int(part) if part.isdigit() else 0 for part in (*parts, "0", "0", "0")]
    if 1000 * numbers[0] + 100 * numbers[1] + numbers[2] < OLDEST_VERSION:
        raise entries.error("maise version 2.4.00 or later (older files have another format)", "maise version")


def _read_numbers(reader: LineReader, count: int, expected: str) -> list[float]:
    words = reader.next(expected).split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise reader.error(expected) from None
    if len(values) != count or not all(map(math.isfinite, values)):
        raise reader.error(expected)
    return values


def _read_ranges(reader: LineReader, n_species: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not reader.next("a rule of dashes").startswith("---"):
        raise reader.error("a rule of dashes")
    if not reader.next("the caption 'minimum maximum range'").startswith("        minimum"):
        raise reader.error("the caption 'minimum maximum range'")
    expected = "minimum, maximum and inverse range of an input (three numbers)"
    table = np.array([_read_numbers(reader, 3, expected) for _ in range(n_species * width)])
    low, high, scale = table.T.reshape(3, n_species, width)
    return low, high, scale


def _read_weights(
    reader: LineReader, n_species: int, widths: Sequence[int]
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    for start in ("---", "|", "---"):
        if not reader.next(f"the box '{_WEIGHTS_TITLE}'").startswith(start):
            raise reader.error(f"the box '{_WEIGHTS_TITLE}'")
    layers = list(pairwise(widths))
    shapes = [(n_out,) for _, n_out in layers] + [(n_out, n_in) for n_in, n_out in layers]
    parts: list[list[np.ndarray]] = [[] for _ in shapes]
    for _ in range(n_species):
        for shape, part in zip(shapes, parts, strict=True):
            values = [_read_numbers(reader, 1, "one weight")[0] for _ in range(math.prod(shape))]
            part.append(np.array(values).reshape(shape))
    if not reader.next("a rule of dashes after the weights").startswith("---"):
        raise reader.error("a rule of dashes after the weights")
    arrays = [np.stack(part) for part in parts]
    return tuple(arrays[: len(layers)]), tuple(arrays[len(layers) :])


def _read_basis(reader: LineReader) -> Basis:
    rest = reader.lines[reader.position :]
    if not any(line.strip() for line in rest):
        expected = f"the basis, from the caption '{CAPTION}' (append the file 'basis' of the training run)"
        raise reader.error(expected, reader.position)
    return parse_basis("\n".join(rest), source=reader.source, first_line=reader.position + 1)
