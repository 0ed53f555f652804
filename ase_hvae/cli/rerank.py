"""``rerank``: a second opinion on the best crystals of a run."""

from __future__ import annotations

import argparse


class CLICommand:
    """Judge the best candidates of a run by a second calculator.

    Takes the ranked candidates of a finished run and its reference crystal, relaxes them by another calculator, and
    compares the two orders. Results go to rerank_<calculator>.db in the run folder, single points and minima as
    labels for `python -m maise_bridge train` to labels_<calculator>.extxyz; the run itself stays as it is. The same
    line goes on after any stop.

    The file of --config may hold the table of the calculator, as for generate, and a table [relax].
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Flags of the command."""
        from ase_hvae.cli import one_line_errors, whole_number

        one_line_errors(parser, "rerank")
        add = parser.add_argument
        add("run", metavar="RUN", help="folder of a finished run")
        add("--calculator", required=True, help="vasp, espresso, gpaw, maise, maise-executable or module:factory")
        add("--top", type=whole_number(1), metavar="N", help="ranked candidates to judge [20, or all if fewer]")
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument("--relax", action="store_true", help="relax them; the default")
        mode.add_argument("--single-point", action="store_true", help="only compute the minima of the run as they are")
        add("--config", metavar="FILE", help="TOML file with the tables of the calculator and [relax]")
        add("--potential", default="silicon", help="MAISE model, for maise and maise-executable [%(default)s]")
        add("--workers", type=whole_number(0), default=1, metavar="N", help="processes; 0: one per core [%(default)s]")
        add("--time-limit", type=float, default=0.0, metavar="S", help="longest time for a candidate, s; 0: none [0]")
        again = parser.add_mutually_exclusive_group()
        again.add_argument("--retry", action="store_true", help="try again what failed before")
        again.add_argument("--overwrite", action="store_true", help="begin anew; the run itself is kept")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Run the command."""
        from ase_hvae.cli import run_command

        run_command("rerank", lambda: _rerank(args), traceback=args.traceback)


def _rerank(args: argparse.Namespace) -> None:
    from ase_hvae.rerank.report import format_report
    from ase_hvae.rerank.run import rerank

    result = rerank(
        args.run,
        args.calculator,
        top=args.top,
        single_point=args.single_point,
        config=args.config,
        potential=args.potential,
        workers=args.workers,
        time_limit=args.time_limit,
        retry=args.retry,
        overwrite=args.overwrite,
    )
    print(format_report(result))
