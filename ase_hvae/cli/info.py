"""``info``: versions, shipped data and weights."""

from __future__ import annotations

import argparse
import json


class CLICommand:
    """Show versions and what the weights were trained on."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Flags of the command."""
        from ase_hvae.cli import one_line_errors

        one_line_errors(parser, "info")
        parser.add_argument("--model", metavar="FILE", help="HVAE weights; default: the shipped ones")
        parser.add_argument("--json", action="store_true", help="print the whole card of the weights as JSON")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Run the command."""
        from ase_hvae.cli import run_command

        run_command("info", lambda: _info(args), traceback=args.traceback)


def _info(args: argparse.Namespace) -> None:
    from ase_hvae import __version__
    from ase_hvae.hvae import load_model

    card = load_model(args.model).card
    if args.json:
        print(json.dumps(card, indent=1))
        return
    print(f"ase-hvae {__version__}")
    print(f"weights  {args.model or 'shipped'}, sha256 {card['sha256']}")
    print(f"species  {', '.join(card['species'])}")
    rdf = card["rdf"]
    print(f"g(r)     {rdf['n_bins']} bins to {rdf['rmax']} Å, smearing {rdf['sigma']} Å")
    print(f"crystals {len(card['crystals'])}")
    for entry in card["crystals"]:
        print(f"         {entry['name']}")
