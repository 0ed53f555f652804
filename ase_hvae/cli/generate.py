"""``generate``: new crystals, ranked."""

from __future__ import annotations

import argparse


class CLICommand:
    """Generate new crystals and rank them.

    Samples the latent space of the HVAE, decodes replicas (target RDFs), reconstructs crystals from them,
    symmetrizes, relaxes, removes duplicates, checks phonons and prints the ranked table. Without arguments it uses
    the shipped silicon weights and potential and writes to the folder hvae_run.

    Every option can also stand in a TOML file (--config); the run folder holds the resolved one. Only there stand the
    tables [vasp], [espresso] and [gpaw], whose options go to the calculator of that name. VASP and Quantum ESPRESSO
    run in DIR/calculator_runs.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Flags of the run folder, and one for each option of the configuration."""
        from ase_hvae.cli import one_line_errors
        from ase_hvae.config import iterate_options, option_type

        one_line_errors(parser, "generate")
        add = parser.add_argument
        add("--out", default="hvae_run", metavar="DIR", help="run folder [%(default)s]")
        add("--config", metavar="FILE", help="TOML file with options; flags win over it")
        existing = parser.add_mutually_exclusive_group()
        existing.add_argument("--resume", action="store_true", help="go on with the run in DIR")
        existing.add_argument("--overwrite", action="store_true", help="replace the run in DIR")
        groups: dict[str, argparse._ArgumentGroup] = {}
        for section, stage, spec in iterate_options():
            group = groups.setdefault(section, parser.add_argument_group(section))
            kind = option_type(stage, spec.name)
            unit = f" ({spec.metadata['unit']})" if spec.metadata["unit"] else ""
            default = "" if spec.default is None else f" [{spec.default}]"
            group.add_argument(
                "--" + spec.name.replace("_", "-"),
                type=kind,
                choices=spec.metadata["choices"],
                default=None,
                metavar=None if spec.metadata["choices"] else kind.__name__.upper(),
                help=(spec.metadata["help"] + unit + default).replace("%", "%%"),
            )

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Run the command."""
        from ase_hvae.cli import run_command

        run_command("generate", lambda: _generate(args), traceback=args.traceback)


def _generate(args: argparse.Namespace) -> None:
    from ase_hvae.config import iterate_options, read_config
    from ase_hvae.database import RunFolder

    RunFolder(args.out, resume=args.resume, overwrite=args.overwrite)  # refuses before the slow imports
    config = None if args.config is None else read_config(args.config)
    names = [spec.name for _, _, spec in iterate_options()]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    from ase_hvae.pipeline import run
    from ase_hvae.report import SHOWN, describe

    database, ranked = run(config, out=args.out, resume=args.resume, overwrite=args.overwrite, **options)
    print(describe(args.out, list(database.iterate(ranked[:SHOWN]))))
