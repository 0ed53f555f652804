"""Where a fit stands, on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from maise_bridge.training import State


class Checkpoint:
    """States of the members of a fit, written whole at every step.

    Attributes
    ----------
    states : dict
        State of each member by its number, see :func:`maise_bridge.training.train`.
    """

    def __init__(self, path: str | Path, identity: str, states: dict[int, State]) -> None:
        self.path = Path(path)
        self.identity = identity
        self.states = states

    @classmethod
    def open(cls, path: str | Path, content: Any, *, overwrite: bool = False) -> Checkpoint:
        """Read a checkpoint, or begin one.

        Parameters
        ----------
        path : path
        content : JSON types
            What decides about the fit: recipe, hashes of labels. A checkpoint goes on only with the same.
        overwrite : bool
            Begin anew if the file is of another fit or damaged.

        Raises
        ------
        ValueError
            If the file is of another fit or damaged, and `overwrite` is not set.
        """
        text = json.dumps([content, torch.__version__], sort_keys=True)
        identity = hashlib.sha256(text.encode()).hexdigest()
        path = Path(path)
        if not path.exists():
            return cls(path, identity, {})
        try:
            found = torch.load(path, weights_only=True)
            if found["identity"] == identity:
                return cls(path, identity, found["states"])
            reason = "is of a fit with other labels, settings or torch"
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            reason = f"cannot be read ({' '.join(str(error).split())[:80]})"
        if not overwrite:
            raise ValueError(f"{path} {reason}; remove it, or pass --overwrite to begin anew")
        return cls(path, identity, {})

    def save(self, member: int, state: State) -> None:
        """Replace the state of a member; a killed process leaves the file before or the one after."""
        self.states[member] = state
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            torch.save({"identity": self.identity, "states": self.states}, partial)
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the file: the fit is done."""
        self.path.unlink(missing_ok=True)
