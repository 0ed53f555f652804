"""MAISE `setup` files: the four-letter tags of a run, checked before MAISE sees them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.calculators.calculator import ReadError

Value = int | float | str | tuple[int, ...]

_KINDS: dict[str, str] = {"int": "a whole number", "float": "a finite number", "str": "one word", "ints": "integers"}


@dataclass(frozen=True)
class _Tag:
    kind: str
    allowed: str = ""
    check: Callable[[Value], bool] = lambda value: True

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        return self.allowed or _KINDS[self.kind]


def _one_of(*values: int) -> _Tag:
    return _Tag("int", "one of " + ", ".join(map(str, values)), lambda value: value in values)


def _number(kind: str, low: float, *, open_end: bool = False) -> _Tag:
    relation = ">" if open_end else ">="
    check = (lambda value: value > low) if open_end else (lambda value: value >= low)
    return _Tag(kind, f"{_KINDS[kind]} {relation} {low:g}", check)


def _positive_integers(text: str) -> _Tag:
    return _Tag("ints", text, lambda value: isinstance(value, tuple) and len(value) > 0 and min(value) > 0)


# In the order in which they are written: NSPC must precede TSPC, and NNNN must precede NNNU and NNGT.
_TAGS: dict[str, _Tag] = {
    "JOBT": _one_of(20, 21, 22, 23, 30, 40, 41),
    "NPAR": _number("int", 1),
    "NDIM": _one_of(0, 2, 3),
    "MMAX": _number("int", 1),
    "NMAX": _number("int", 1),
    "MINT": _one_of(0, 1, 2, 3),
    "MITR": _number("int", 0),
    "RLXT": _one_of(0, 2, 3, 7, 8),
    "ETOL": _number("float", 0, open_end=True),
    "PGPA": _Tag("float"),
    "COUT": _one_of(0, 1, 2, 10, 11, 12),
    "UREP": _number("float", 0),
    "FRAC": _number("float", 0),
    "DISP": _number("float", 0, open_end=True),
    "MDTP": _one_of(10, 11, 20, 21, 30, 31, 40, 41),
    "TMIN": _number("float", 0),
    "TMAX": _number("float", 0),
    "TSTP": _number("float", 0),
    "NSTP": _number("int", 1),
    "DELT": _number("float", 0, open_end=True),
    "CPLT": _number("float", 0),
    "CPLP": _number("float", 0),
    "ICMP": _number("float", 0),
    "MOVI": _number("int", 1),
    "SEED": _number("int", 0),
    "WDIR": _Tag("str"),
    "NSPC": _number("int", 1),
    "TSPC": _positive_integers("atomic numbers"),
    "NSYM": _number("int", 1),
    "NCMP": _number("int", 1),
    "TEFS": _one_of(0, 1),
    "FMRK": _number("float", 0),
    "ECUT": _number("float", 0, open_end=True),
    "EMAX": _number("float", 0),
    "FMAX": _number("float", 0),
    "FMIN": _number("float", 0),
    "RAND": _Tag("int"),
    "NTRN": _Tag("int"),
    "NTST": _Tag("int"),
    "NNNN": _one_of(1, 2),
    "NNNU": _positive_integers("neurons of each hidden layer"),
    "NNGT": _Tag("ints", "0 or 1 for each hidden layer", lambda value: set(value) <= {0, 1}),  # type: ignore[arg-type]
    "LREG": _number("float", 0),
    "WFRC": _number("float", 0),
    "WENE": _Tag("float"),
    "DEPO": _Tag("str"),
    "DATA": _Tag("str"),
    "OTPT": _Tag("str"),
}

_STATIC = {"NPAR": 1, "MMAX": 250, "UREP": 100.0, "FRAC": 1.0}
_RELAXATION = {**_STATIC, "MINT": 0, "MITR": 0, "RLXT": 2, "ETOL": 1e-6, "PGPA": 0.0, "COUT": 12}
_DEFAULTS: dict[int, dict[str, Value]] = {
    20: {**_RELAXATION},
    21: {**_STATIC, "PGPA": 0.0, "COUT": 12, "SEED": 1, "WDIR": "."},
    22: {**_RELAXATION, "DISP": 0.001},
    23: {**_RELAXATION},
    30: {"NPAR": 1, "NMAX": 100, "MMAX": 250, "ECUT": 0.9, "EMAX": 5.0, "FMAX": 50.0, "FMIN": 1e-5, "DATA": "DATA"},
    40: {"NPAR": 1, "MINT": 0, "WFRC": 0.01, "WENE": 1000.0, "DATA": "DATA", "OTPT": "NNET"},
}
_DEFAULTS[41] = _DEFAULTS[40]
_NETWORK = ("NSPC", "TSPC", "NSYM", "NCMP", "TEFS")
_FIT = (*_NETWORK, "NTRN", "NTST", "NNNN", "NNNU", "NNGT", "LREG", "MITR", "SEED")
_REQUIRED: dict[int, tuple[str, ...]] = {
    20: ("NDIM",),
    21: ("NDIM", "MDTP", "TMIN", "TMAX", "TSTP", "NSTP", "DELT"),
    22: ("NDIM",),
    23: ("NDIM",),
    30: ("NDIM", *_NETWORK, "FMRK", "RAND", "DEPO"),
    40: _FIT,
    41: _FIT,
}


def format_setup(tags: Mapping[str, Value]) -> str:
    """Return the text of a `setup` file.

    Every tag that the job reads is written, given or not, because MAISE leaves several of them undefined.

    Parameters
    ----------
    tags : mapping of str to int, float, str or tuple of int
        Values of the four-letter tags in MAISE's units; ``JOBT`` always, and what has no sensible default, such as
        ``NDIM``. A relaxation (``MITR`` > 0) must name its ``RLXT``.

    Raises
    ------
    ValueError
        If a tag is unknown, missing, or has a value that MAISE misreads or refuses; the message names tag, value and
        what is allowed.
    """
    for tag in tags:
        if tag not in _TAGS:
            raise ValueError(f"unknown setup tag {tag!r}; known: {', '.join(_TAGS)}")
    values = {tag: _checked(tag, value) for tag, value in tags.items()}
    if "JOBT" not in values:
        raise ValueError(f"setup tag JOBT is missing; give {_TAGS['JOBT'].expected}")
    job = values["JOBT"]
    assert isinstance(job, int)
    required = list(_REQUIRED[job])
    if values.get("MITR", 0) and job == 20:
        required.append("RLXT")
    for tag in required:
        if tag not in values:
            raise ValueError(f"setup tag {tag} is missing, JOBT {job} needs it; give {_TAGS[tag].expected}")
    _check_pairs(values)
    values = {**_DEFAULTS[job], **values}
    return "".join(f"{tag}  {_text(values[tag])}\n" for tag in _TAGS if tag in values)


def write_setup(tags: Mapping[str, Value], path: str | Path) -> None:
    """Write the text of :func:`format_setup` to a file. Raises ValueError before anything is written."""
    Path(path).write_text(format_setup(tags), encoding="ascii", newline="\n")


def read_setup(path: str | Path) -> dict[str, Value]:
    """Read the tags of a `setup` file as MAISE does.

    A tag is the first four characters of a line, what follows its value is ignored, later lines win, and lines that
    begin with no tag known here are comments. ``format_setup(read_setup(path))`` is the text of a file written here.

    Raises
    ------
    ReadError
        If a value is missing, malformed or not allowed; the message names file and line.
    """
    values: dict[str, Value] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        tag, words = line[:4], line[4:].split()
        if tag not in _TAGS or line[4:5].strip():
            continue
        try:
            values[tag] = _checked(tag, _parsed(tag, words, values))
        except (ValueError, IndexError):
            found = " ".join(words) or "nothing"
            raise ReadError(
                f"{path}, line {number}: expected {tag} to be {_TAGS[tag].expected}, found {found}"
            ) from None
    return values


def _parsed(tag: str, words: list[str], values: Mapping[str, Value]) -> Value:
    kind = _TAGS[tag].kind
    if kind == "ints":
        count = values.get("NSPC" if tag == "TSPC" else "NNNN")  # stands above the list, as in MAISE
        if not isinstance(count, int) or len(words) < count:
            raise ValueError
        return tuple(int(word) for word in words[:count])
    return {"int": int, "float": float, "str": str}[kind](words[0])


def _checked(tag: str, value: Value) -> Value:
    """The value in its type, or ValueError naming tag, value and what is allowed."""
    entry = _TAGS[tag]
    result: Value = value
    types: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "ints": (tuple, list)}
    good = isinstance(value, types[entry.kind]) and not isinstance(value, bool)
    if good and entry.kind == "float":
        result = float(value)  # type: ignore[arg-type]
        good = math.isfinite(result)
    elif good and entry.kind == "str":
        good = len(str(value).split()) == 1 and str(value).isascii() and len(str(value)) < 190
    elif good and entry.kind == "ints":
        assert not isinstance(value, (int, float, str))
        result = tuple(value)
        good = all(isinstance(item, int) and not isinstance(item, bool) for item in result)
    if not good or not entry.check(result):
        raise ValueError(f"setup tag {tag} is {value!r}; it must be {entry.expected}")
    return result


def _check_pairs(values: Mapping[str, Value]) -> None:
    """Lists must be as long as the tag before them says."""
    for tag, counter in (("TSPC", "NSPC"), ("NNNU", "NNNN"), ("NNGT", "NNNN")):
        if tag not in values:
            continue
        items, count = values[tag], values.get(counter)
        assert isinstance(items, tuple)
        if count != len(items):
            raise ValueError(f"setup tag {tag} has {len(items)} values {items}; {counter} is {count}, they must agree")


def _text(value: Value) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return repr(value) if isinstance(value, float) else str(value)
