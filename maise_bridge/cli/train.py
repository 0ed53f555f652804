"""``train``: fit a MAISE network to labelled crystals."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("labels", nargs="+", metavar="LABELS", help="files that ASE reads, with energies and forces")
    add("--out", required=True, type=Path, help="model file to write; its card goes to OUT.json")
    add("--overwrite", action="store_true", help="replace OUT")
    add("--hidden", nargs=2, type=int, default=(20, 20), metavar="N", help="widths of the hidden layers")
    add("--seed", type=int, default=0, help="of the first member's initial weights")
    add("--members", type=int, default=1, help="networks to fit, merged into one")
    add("--split-seed", type=int, default=0, help="of the split by family")
    add("--keep", action="append", default=[], metavar="PATTERN", help="config_types whose families are not held out")
    add("--iterations", type=int, default=2000, help="most iterations of L-BFGS")
    add("--epochs", type=int, default=20, help="epochs of Adam before")
    add("--weight-decay", type=float, default=0.3)
    add("--energy-window", type=float, default=0.5, help="eV/atom; rows far above it weigh little")
    tag_help = "weigh rows with such a config_type"
    add("--tag-weight", action="append", default=[], metavar="PATTERN=FACTOR", help=tag_help)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from maise_bridge.cli.tables import print_errors
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
        print_errors(part, rows)
    print(f"wrote {options.out} and {options.out}.json")
    return 0


def _tag_weight(text: str) -> tuple[str, float]:
    pattern, _, factor = text.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not pattern or not value >= 0:
        raise ValueError(f"--tag-weight {text!r}: give PATTERN=FACTOR, as in 'dia*=4'")
    return pattern, value
