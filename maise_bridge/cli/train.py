"""``train``: fit a MAISE network to labelled crystals.

Labels: files that ASE reads, with energies and forces, or trees of MAISE (CATEGORY/.../POSCAR.0 with dat.dat, and `tag`
files). Progress goes to OUT.checkpoint: the same line goes on after any stop, and ends with the same bits.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maise_bridge.filters import Filters
    from maise_bridge.recipe import FitResult, Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.description = "\n".join((__doc__ or "").partition(": ")[2].splitlines())
    add = parser.add_argument
    add("labels", nargs="+", metavar="LABELS", help="label files, or MAISE's trees")
    add("--out", required=True, type=Path, help="model file to write; its card goes to OUT.json")
    add("--overwrite", action="store_true", help="replace OUT")
    add("--plots", type=Path, metavar="DIR", help="folder for history.png and parity.png")
    add("--write-depo", type=Path, metavar="DIR", help="also write the rows used as a tree of MAISE, DIR new")
    _add_fit(parser.add_argument_group("fit").add_argument)
    _add_filters(parser.add_argument_group("rows to leave out").add_argument)
    _add_maise(parser.add_argument_group("as MAISE does").add_argument)


def _add_fit(add: Callable) -> None:
    add("--basis", metavar="FILE", help="MAISE basis file: the symmetry functions [the standard 51]")
    add("--hidden", nargs=2, type=int, default=(20, 20), metavar="N", help="widths of the hidden layers [20 20]")
    add("--seed", type=int, default=0, help="of the first member's initial weights [0]")
    add("--members", type=int, default=1, help="networks to fit, merged into one [1]")
    add("--split-seed", type=int, default=0, help="of the split by family [0]")
    add("--fold", metavar="I/N", help="hold out test set I, from 0, of N that share no family, instead of an eighth")
    add("--keep", action="append", default=[], metavar="PATTERN", help="config_types whose families are not held out")
    auxiliary_help = "config_types of rows to train on that the split passes over, as labels of a cheaper method"
    add("--auxiliary", action="append", default=[], metavar="PATTERN", help=auxiliary_help)
    add("--iterations", type=int, default=2000, help="most iterations of L-BFGS [2000]")
    end_help = "run all iterations and keep the last weights; rows that would validate are trained on, too"
    add("--no-early-stopping", action="store_true", help=end_help)
    add("--epochs", type=int, default=20, help="epochs of Adam before [20]")
    add("--weight-decay", type=float, default=0.3, help="factor of the sum of squared weights [0.3]")
    add("--energy-window", type=float, default=0.5, help="eV/atom; rows far above it weigh little [0.5]")
    near_help = "share of the usual errors of forces and stress that the lowest rows are allowed [1]"
    add("--near-tolerance", type=float, default=1.0, metavar="SHARE", help=near_help)
    tag_help = "weigh rows with such a config_type"
    add("--tag-weight", action="append", default=[], metavar="PATTERN=FACTOR", help=tag_help)


def _add_filters(add: Callable) -> None:
    add("--ecut", type=float, default=1.0, help="share of each category to keep, lowest energies first: ECUT [1]")
    add("--emax", type=float, default=math.inf, help="largest energy above a category's lowest, eV/atom: EMAX")
    add("--fmax", type=float, default=math.inf, help="largest force component, eV/Å: FMAX")
    add("--vmin", type=float, default=0.0, help="smallest volume, Å^3/atom")
    add("--vmax", type=float, default=math.inf, help="largest volume, Å^3/atom")
    add("--max-kspacing", type=float, default=math.inf, metavar="K", help="coarsest recorded k spacing, 1/Å")
    only_help = "rows that record this alone, as in ecut=260 or program.gpaw='26.*'"
    add("--only", action="append", default=[], metavar="KEY=PATTERN", help=only_help)


def _add_maise(add: Callable) -> None:
    freeze_help = "stratified training: keep these models of two elements, or of three binaries; fit what is between"
    add("--freeze", nargs="+", default=[], metavar="MODEL", help=freeze_help)
    add("--maise-objective", action="store_true", help="MAISE's weights of errors, start and penalty; --seed from 1")
    add("--force-weight", type=float, metavar="W", help="of squared forces, Å^2, there: WFRC [0.01]")
    add("--energy-limit", type=float, metavar="E", help="beyond it rows weigh less there, eV/atom: WENE [1000]")
    add("--force-fraction", type=float, metavar="F", help="share of atoms whose forces count there: FMRK [1]")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from maise_bridge.cli.tables import print_errors
    from maise_bridge.depo import write_depo
    from maise_bridge.recipe import fit

    if options.write_depo and options.write_depo.exists():
        raise ValueError(f"{options.write_depo} exists; name a new folder")
    recipe = _recipe(options)
    with _watch(recipe.n_members, recipe.n_epochs + recipe.n_lbfgs) as watch:
        result = fit(options.labels, options.out, recipe, overwrite=options.overwrite, watch=watch)
    removed = {name: number for name, number in result.labels.removed.items() if number}
    if removed:
        counts = ", ".join(f"{name} {number}" for name, number in removed.items())
        print(f"{sum(removed.values())} rows left out: {counts}")
    for part, rows in result.card["errors"].items():
        print_errors(part, rows)
    print(f"wrote {options.out} and {options.out}.json")
    if options.plots:
        _plot(result, options.plots)
    if options.write_depo:
        numbers = write_depo(result.labels, options.write_depo)
        print(f"wrote {options.write_depo}: {sum(numbers.values())} structures in {len(numbers)} categories")
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    from maise_bridge.objective import MaiseObjective
    from maise_bridge.recipe import Recipe

    names = ("force_weight", "energy_limit", "force_fraction")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if given and not options.maise_objective:
        flag = next(iter(given)).replace("_", "-")
        raise ValueError(f"--{flag} is a weight of MAISE's objective; add --maise-objective")
    return Recipe(
        hidden=tuple(options.hidden),
        seed=options.seed,
        n_members=options.members,
        split_seed=options.split_seed,
        fold=None if options.fold is None else _fold(options.fold),
        keep=tuple(options.keep),
        auxiliary=tuple(options.auxiliary),
        n_lbfgs=options.iterations,
        early_stopping=not options.no_early_stopping,
        n_epochs=options.epochs,
        weight_decay=options.weight_decay,
        energy_window=options.energy_window,
        near_tolerance=options.near_tolerance,
        tag_weights=tuple(_tag_weight(text) for text in options.tag_weight),
        filters=_filters(options),
        maise=MaiseObjective(**given, seed=options.seed) if options.maise_objective else None,
        frozen=tuple(options.freeze),
        basis=options.basis,
    )


def _filters(options: argparse.Namespace) -> Filters:
    from maise_bridge.filters import Filters

    pairs = [text.partition("=") for text in options.only]
    for (name, sign, _), text in zip(pairs, options.only, strict=True):
        if not (name and sign):
            raise ValueError(f"--only {text!r}: give KEY=PATTERN, as in ecut=260")
    return Filters(
        ecut=options.ecut,
        emax=options.emax,
        fmax=options.fmax,
        vmin=options.vmin,
        vmax=options.vmax,
        kspacing=options.max_kspacing,
        only=tuple((name, pattern) for name, _, pattern in pairs),
    )


def _tag_weight(text: str) -> tuple[str, float]:
    pattern, _, factor = text.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not pattern or not value >= 0:
        raise ValueError(f"--tag-weight {text!r}: give PATTERN=FACTOR, as in 'dia*=4'")
    return pattern, value


def _fold(text: str) -> tuple[int, int]:
    number, _, n_folds = text.partition("/")
    try:
        return int(number), int(n_folds)
    except ValueError:
        raise ValueError(f"--fold {text!r}: give I/N, as in 0/5") from None


@contextmanager
def _watch(n_members: int, n_steps: int) -> Iterator[Callable]:
    """Yield what shows a member's progress: a bar on a terminal, a line for each hundred steps elsewhere."""
    terminal = sys.stderr.isatty()
    if terminal:
        from tqdm import tqdm

        bar = tqdm(total=n_members * n_steps, dynamic_ncols=True, leave=False, unit="step")

    def watch(member: int) -> Callable[[int, float, float], None]:
        """Return what reports the steps of a member, from 0."""
        title = f"member {member + 1} of {n_members}"
        last = -100

        def report(step: int, train: float, validation: float) -> None:
            """Show step and objectives: in the bar on a terminal, as a line every 100 steps in a log."""
            nonlocal last
            text = f"objective {train:.4f} (training)"
            if math.isfinite(validation):
                text += f" {validation:.4f} (validation)"
            if terminal:
                bar.set_description(title)
                bar.n = member * n_steps + step
                bar.set_postfix_str(text)
            elif step >= last + 100:
                last = step
                print(f"{title}, step {step}: {text}", file=sys.stderr, flush=True)

        return report

    try:
        yield watch
    finally:
        if terminal:
            bar.close()


def _plot(result: FitResult, folder: Path) -> None:
    from maise_bridge.evaluation import residuals
    from maise_bridge.plots import plot_history, plot_parity
    from maise_bridge.potential import MaisePotential

    folder.mkdir(parents=True, exist_ok=True)
    potential = MaisePotential(result.model, core_repulsion=False)
    parts = {name: result.labels.select(getattr(result.split, name)) for name in result.card["errors"]}
    plot_history(result.histories, folder / "history.png")
    plot_parity({name: (rows, residuals(potential, rows)) for name, rows in parts.items()}, folder / "parity.png")
    print(f"wrote {folder}/history.png and {folder}/parity.png")
