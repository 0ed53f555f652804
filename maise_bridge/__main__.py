"""Command line: train, evaluate and describe MAISE potentials."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import CalculatorSetupError, ReadError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m maise_bridge``; returns the exit status, 2 for bad input."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    try:
        options.run(options)
    except (ValueError, OSError, ReadError, CalculatorSetupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m maise_bridge", description=__doc__)
    parser.add_argument("-v", "--verbose", action="store_true", help="show how the fit goes")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="fit a MAISE network to labelled crystals")
    train.add_argument("labels", nargs="+", metavar="LABELS", help="files that ASE reads, with energies and forces")
    train.add_argument("--out", required=True, type=Path, help="model file to write; its card goes to OUT.json")
    train.add_argument("--overwrite", action="store_true", help="replace OUT")
    train.add_argument("--hidden", nargs=2, type=int, default=(20, 20), metavar="N", help="widths of the hidden layers")
    train.add_argument("--seed", type=int, default=0, help="of the first member's initial weights")
    train.add_argument("--members", type=int, default=1, help="networks to fit, merged into one")
    train.add_argument("--split-seed", type=int, default=0, help="of the split by family")
    train.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="config_types whose families are not held out"
    )
    train.add_argument("--iterations", type=int, default=2000, help="most iterations of L-BFGS")
    train.add_argument("--epochs", type=int, default=20, help="epochs of Adam before")
    train.add_argument("--weight-decay", type=float, default=0.3)
    train.add_argument("--energy-window", type=float, default=0.5, help="eV/atom; rows far above it weigh little")
    train.add_argument(
        "--tag-weight", action="append", default=[], metavar="PATTERN=FACTOR", help="weigh rows with such a config_type"
    )
    train.set_defaults(run=_train)
    evaluate = commands.add_parser("evaluate", help="errors of a model on labels, by energy window")
    evaluate.add_argument("model", help="model file or name of a shipped model")
    evaluate.add_argument("labels", nargs="+", metavar="LABELS")
    evaluate.add_argument(
        "--core-repulsion", action="store_true", help="add MAISE's core repulsion (not part of a fit)"
    )
    evaluate.set_defaults(run=_evaluate)
    info = commands.add_parser("info", help="what a model file holds")
    info.add_argument("model", help="model file or name of a shipped model")
    info.set_defaults(run=_info)
    return parser


def _train(options: argparse.Namespace) -> None:
    from maise_bridge.recipe import Recipe, fit

    if options.out.exists() and not options.overwrite:
        raise ValueError(f"{options.out} exists; pass --overwrite to replace it")
    recipe = Recipe(
        hidden=tuple(options.hidden),
        seed=options.seed,
        n_members=options.members,
        split_seed=options.split_seed,
        keep=tuple(options.keep),
        n_lbfgs=options.iterations,
        n_epochs=options.epochs,
        weight_decay=options.weight_decay,
        energy_window=options.energy_window,
        tag_weights=tuple(_tag_weight(text) for text in options.tag_weight),
    )
    card = fit(options.labels, options.out, recipe)
    for part, rows in card["errors"].items():
        _print_errors(part, rows)
    print(f"wrote {options.out} and {options.out}.json")


def _tag_weight(text: str) -> tuple[str, float]:
    pattern, _, factor = text.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not pattern or not value >= 0:
        raise ValueError(f"--tag-weight {text!r}: give PATTERN=FACTOR, as in 'dia*=4'")
    return pattern, value


def _evaluate(options: argparse.Namespace) -> None:
    from maise_bridge.calculator import find_model
    from maise_bridge.dataset import read_labels
    from maise_bridge.evaluation import residuals, window_errors
    from maise_bridge.potential import MaisePotential

    potential = MaisePotential.from_file(find_model(options.model), core_repulsion=options.core_repulsion)
    labels = read_labels(options.labels)
    errors = window_errors(residuals(potential, labels), labels, lowest=float(labels.energies_per_atom.min()))
    _print_errors("all", [row.as_dict() for row in errors])


def _info(options: argparse.Namespace) -> None:
    from maise_bridge.calculator import find_model
    from maise_bridge.model_file import GuptaModel, read_model

    path = find_model(options.model)
    model = read_model(path)
    print(f"file             {path}")
    print(f"species          {' '.join(model.species)}")
    if isinstance(model, GuptaModel):
        print(f"form             Gupta, {len(model.pairs)} pairs")
    else:
        print(f"layers           {'-'.join(str(width) for width in model.architecture)} ({model.n_weights} weights)")
    print(f"cutoff           {model.cutoff:.4f} Å")
    print(f"id               {model.unique_id}")
    for label, value in model.info.items():
        if value not in ("", "-"):
            print(f"{label:32s} {value}")
    card = Path(f"{path}.json")
    if card.is_file():
        for part, rows in json.loads(card.read_text())["errors"].items():
            _print_errors(part, rows)


def _print_errors(part: str, rows: Sequence[dict[str, Any]]) -> None:
    from ase.units import GPa

    for row in rows:
        window, stress = row["window"], row["stress"]
        limit = "all" if window is None or not np.isfinite(window) else f"<= {window:g} eV/atom"
        tail = "" if stress is None else f" {stress / GPa:6.2f} GPa"
        print(
            f"{part:10s} {limit:15s} {row['n_rows']:5d} structures: {1e3 * row['energy']:7.1f} meV/atom "
            f"{row['forces']:7.3f} eV/Å{tail}"
        )


if __name__ == "__main__":
    sys.exit(main())
