"""Files of a labelling run: labels and failures, written frame by frame so that a kill or a full disk spoils none."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

logger = logging.getLogger(__name__)
_TOLERANCE = 1e-4  # Å; what digits of formats differ by


def structure_id(atoms: Atoms) -> str:
    """Identity of a structure by content, the same whatever file and place it comes from.

    Numbers, cell, positions (both to 1e-8 Å), boundary conditions and initial magnetic moments count; the choice of
    cell does, too.
    """
    digest = hashlib.sha256(atoms.numbers.astype("<i8").tobytes() + atoms.pbc.tobytes())
    arrays = [atoms.cell.array, atoms.positions]
    if atoms.has("initial_magmoms"):
        arrays.append(atoms.get_initial_magnetic_moments())
    for array in arrays:
        digest.update((np.round(array, 8) + 0.0).astype("<f8").tobytes())
    return f"sha256-{digest.hexdigest()[:20]}"  # never read back as a number


class LabelFile:
    """Extended XYZ file to which labels are appended, by one process at a time; made by :func:`open_label_file`.

    Attributes
    ----------
    frames : list of Atoms
        What it held when it was opened.
    """

    def __init__(self, path: Path, descriptor: int, frames: list[Atoms]) -> None:
        self.path = path
        self._descriptor = descriptor
        self.frames = frames

    def append(self, atoms: Atoms) -> None:
        """Write a frame whole to the disk, or nothing.

        Raises
        ------
        OSError
            If the disk refuses; the file is as before.
        """
        text = io.StringIO()
        write(text, atoms, format="extxyz")
        _append(self._descriptor, text.getvalue().encode(), self.path)


@contextmanager
def open_label_file(path: Path, check: Callable[[str, Atoms], None]) -> Iterator[LabelFile]:
    """Open a label file to append to; a last frame that a kill cut off is removed, and in the end an empty file.

    Parameters
    ----------
    path : Path
        Extended XYZ, new or written before.
    check : callable
        Called with file and index, and the structure, of each whole frame; may refuse by raising ValueError, before
        anything is changed.

    Raises
    ------
    ValueError
        If the file is no extended XYZ, is damaged before its last frame, or another process labels to it.
    OSError
        If it cannot be read or written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path}: another process labels to it; wait for it, or name another file") from None
        frames, end = _read_frames(path)
        for number, atoms in enumerate(frames):
            check(f"{path}, structure {number}", atoms)
        _remove_rest(path, descriptor, end)
        try:
            yield LabelFile(path, descriptor, frames)
        finally:
            if os.fstat(descriptor).st_size == 0:
                path.unlink()
    finally:
        os.close(descriptor)


class FailureFile:
    """Lines of JSON, one per failed structure, beside a label file.

    Parameters
    ----------
    path : Path
        Made with the first failure.

    Attributes
    ----------
    entries : list of dict
        What it held when it was opened: `structure`, `name`, `cause`, `cpu`, `settings`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        if not path.exists():
            return
        contents = path.read_bytes()
        whole = contents[: contents.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode(errors="replace").splitlines(), 1):
            try:
                self.entries.append(dict(json.loads(line)))
            except ValueError:
                raise ValueError(f"{path}, line {number}: is no failure written by label; move the file away") from None
        if len(whole) < len(contents):
            logger.warning("%s: the last line was cut off and is removed", path)
            os.truncate(path, len(whole))

    def append(self, entry: dict[str, Any]) -> None:
        """Write an entry whole to the disk, or nothing; raises OSError if the disk refuses."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _append(descriptor, json.dumps(entry, ensure_ascii=False).encode() + b"\n", self.path)
        finally:
            os.close(descriptor)


class KnownStructures:
    """Structures that need no label, found again up to the digits of a file format.

    Parameters
    ----------
    structures : sequence of Atoms
    """

    def __init__(self, structures: Sequence[Atoms]) -> None:
        self._groups: dict[bytes, list[Atoms]] = {}
        for atoms in structures:
            self._groups.setdefault(atoms.numbers.tobytes(), []).append(atoms)
        self._cells = {key: np.array([atoms.cell.array for atoms in group]) for key, group in self._groups.items()}

    def __contains__(self, atoms: Atoms) -> bool:
        key = atoms.numbers.tobytes()
        if key not in self._groups:
            return False
        near = np.abs(self._cells[key] - atoms.cell.array).max(axis=(1, 2)) < _TOLERANCE
        return any(_same_positions(self._groups[key][row], atoms) for row in np.flatnonzero(near))


def _same_positions(first: Atoms, second: Atoms) -> bool:
    shift = (first.positions - second.positions) @ np.linalg.inv(second.cell.array)
    return bool(np.abs((shift - np.round(shift)) @ second.cell.array).max() < _TOLERANCE)


def _append(descriptor: int, data: bytes, path: Path) -> None:
    before = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError as error:
        os.ftruncate(descriptor, before)
        raise OSError(f"cannot write {path}: {error.strerror}; what it held is kept, run again to go on") from error


def _read_frames(path: Path) -> tuple[list[Atoms], int]:
    """Whole frames, and the offset at which a cut one begins."""
    contents = path.read_bytes()
    end = _end_of_frames(contents, path)
    if end == 0:
        return [], 0
    try:
        return list(read(io.StringIO(contents[:end].decode()), ":", format="extxyz")), end
    except Exception as error:  # ASE's readers raise whatever the text led them to
        raise ValueError(f"{path}: ASE cannot read it ({error}); move it away or name another file") from error


def _remove_rest(path: Path, descriptor: int, end: int) -> None:
    """Cut the file after its whole frames; a file that has none must look like ours."""
    rest = path.read_bytes()[end:]
    if not rest:
        return
    if end == 0 and rest.count(b"\n") >= 2 and b"settings=" not in rest:
        raise ValueError(f"{path}: holds one structure, cut off and not written by label; name another file")
    logger.warning("%s: the last frame was cut off and is removed (%d bytes)", path, len(rest))
    os.ftruncate(descriptor, end)
    os.fsync(descriptor)


def _end_of_frames(contents: bytes, path: Path) -> int:
    """End of the last whole frame; raises ValueError where no frame begins."""
    offset = 0
    while offset < len(contents):
        first, newline, _ = contents[offset : offset + 80].partition(b"\n")
        if not re.fullmatch(rb" *\d+ *\r?" if newline else rb" *\d* *\0*", first):
            line = contents.count(b"\n", 0, offset) + 1
            raise ValueError(f"{path}, line {line}: {first[:40]!r} is no number of atoms; move the file away")
        end = offset
        for _ in range(int(first) + 2 if newline else 0):
            end = contents.find(b"\n", end) + 1
            if end == 0:
                break
        if end in (0, offset) or b"\0" in contents[offset:end]:
            break
        offset = end
    return offset
