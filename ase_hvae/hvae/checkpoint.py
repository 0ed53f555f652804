"""Model files: weights as safetensors and, beside them, a JSON card that says what they are. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ase_hvae.errors import ModelError
from ase_hvae.hvae.model import HVAE

FORMAT = "ase-hvae 1"
SHIPPED = Path(__file__).parent.parent / "data" / "silicon_hvae.safetensors"


def save_model(model: HVAE, path: str | os.PathLike[str]) -> Path:
    """Write the weights to `path` (``.safetensors``) and `model.card` to the same name with ``.json``.

    Both files are replaced in one step each; the card gets the architecture and the sha256 of the weights, also in
    ``model.card``.

    Returns
    -------
    Path
        Of the weights.
    """
    path = _weights_path(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelError(f"weights {', '.join(broken)} are not finite; nothing was written to {path}")
    weights = save(state)
    model.card.update(format=FORMAT, architecture=model.architecture, sha256=hashlib.sha256(weights).hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, weights)
    _replace(path.with_suffix(".json"), (json.dumps(model.card, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def load_model(path: str | os.PathLike[str] | None = None) -> HVAE:
    """Read a model written by `save_model`; None is the shipped silicon model.

    Raises
    ------
    ModelError
        If the weights or the card are missing or damaged, or do not belong together.
    """
    path = SHIPPED if path is None else _weights_path(path)
    if not path.is_file():
        raise ModelError(f"weights {path} do not exist; train them with 'python -m ase_hvae train --out {path}'")
    card = _read_card(path)
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != card.get("sha256"):
        raise ModelError(
            f"{path} and its card {path.with_suffix('.json')} do not belong together (sha256 of the weights differs); "
            "restore both files or train again"
        )
    try:
        state = load(weights)
        model = HVAE(**card["architecture"])
        model.to(next(iter(state.values())).dtype).load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, StopIteration) as error:
        raise ModelError(f"{path} holds no usable HVAE weights ({error}); train again") from error
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise ModelError(f"{path} holds weights that are not finite; train again with a lower learning rate")
    model.card = card
    return model.eval()


def _weights_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"model file {path} must end in .safetensors (the card lies beside it as .json)")
    return path


def _read_card(path: Path) -> dict[str, Any]:
    card_path = path.with_suffix(".json")
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"model card {card_path} does not exist; name a model written by 'python -m ase_hvae train'"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"model card {card_path} is damaged ({error}); restore it or train again") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ModelError(f"model card {card_path} has format {found!r}, not {FORMAT!r}; train again")
    return card


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content)
    os.replace(partial, path)
