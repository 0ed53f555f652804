"""``info``: what model files hold."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maise_bridge.gupta_file import GuptaModel
    from maise_bridge.model_file import MaiseModel

_PARAMETERS = ("A eV", "p", "B eV", "q", "r0 Å", "r_min Å", "r_max Å")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="model files or names of shipped models [all shipped]"
    )
    parser.add_argument("--model", action="append", default=[], metavar="M", help="the same")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from maise_bridge.calculator import find_model, shipped_models
    from maise_bridge.cli.tables import print_errors
    from maise_bridge.model_file import read_model

    names = [*options.models, *options.model] or shipped_models()
    found = [(path, read_model(path)) for path in map(find_model, names)]
    for number, (path, model) in enumerate(found):
        if number:
            print()
        print(f"{'file':20s} {path}")
        _describe(model)
        card = Path(f"{path}.json")
        if card.is_file():
            for part, rows in json.loads(card.read_text())["errors"].items():
                print_errors(part, rows)
    return 0


def _describe(model: MaiseModel | GuptaModel) -> None:
    from maise_bridge.gupta_file import GuptaModel

    entries = {"species": " ".join(model.species)}
    if isinstance(model, GuptaModel):
        entries["form"] = f"Gupta, {len(model.pairs)} pair{'s' if len(model.pairs) > 1 else ''} of species"
    else:
        widths = "-".join(str(width) for width in model.architecture)
        entries["form"] = f"neural network {widths}, {model.n_weights} weights"
        n_angular, n_radial = len(model.basis.angular), len(model.basis.radial)
        entries["inputs"] = f"{n_radial} radial and {n_angular} angular functions for each (pair of) neighbour species"
    entries |= {"cutoff": f"{model.cutoff:.4f} Å", "id": model.unique_id}
    for label, value in entries.items():
        print(f"{label:20s} {value}")
    if isinstance(model, GuptaModel):
        _print_pairs(model)
        return
    shown = {"model unique ID", "number of species", "species types", "species names", "number of layers"}
    for label, value in model.info.items():
        if value not in ("", "-") and label not in shown | {"architecture", "number of weights"}:
            print(f"{label:20s} {value}")


def _print_pairs(model: GuptaModel) -> None:
    print(f"{'reference':20s} {model.info.get('reference') or '-'}")
    print(f"{'pair':20s}" + "".join(f"{title:>10s}" for title in _PARAMETERS))
    for (a, b), row in zip(model.pairs, model.parameters, strict=True):
        print(f"{model.species[a] + '-' + model.species[b]:20s}" + "".join(f"{value:10.4f}" for value in row))
