"""``train``: HVAE weights from known crystals."""

from __future__ import annotations

import argparse


class CLICommand:
    """Train the HVAE on known crystals.

    Without arguments the shipped weights are trained again, from the shipped table of silicon crystals.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Flags of the training."""
        from ase_hvae.cli import one_line_errors, whole_number

        one_line_errors(parser, "train")
        add = parser.add_argument
        add("--structures", metavar="FILE", help="crystals to learn: a file that ASE reads, an ase.db, or a folder")
        add("--exclude", metavar="FILE", nargs="+", help="hold out every crystal that matches one of these")
        add("--out", metavar="FILE", default="hvae.safetensors", help="weights to write [%(default)s]")
        add("--overwrite", action="store_true", help="replace FILE if it exists")
        add("--seed", type=whole_number(0), default=0, help="seed of every random number [%(default)s]")
        add("--epochs", type=whole_number(1), metavar="N", help="passes through the augmented data")
        add("--n-leapfrog", type=whole_number(0), metavar="K", help="leapfrog steps; 0 is the standard VAE")
        add("--optimizer", choices=("adam", "sgd"), help="optimizer")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Run the command."""
        from ase_hvae.cli import run_command

        run_command("train", lambda: _train(args), traceback=args.traceback)


def _train(args: argparse.Namespace) -> None:
    from pathlib import Path

    from ase_hvae.errors import ConfigError

    if Path(args.out).exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists; add --overwrite to replace it, or choose another file with --out")

    from ase_hvae.training import train

    optional = {name: getattr(args, name) for name in ("epochs", "n_leapfrog", "optimizer")}
    result = train(
        args.structures,
        args.out,
        exclude=args.exclude,
        seed=args.seed,
        **{name: value for name, value in optional.items() if value is not None},
    )
    print(result)
