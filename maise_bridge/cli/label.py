"""``label``: energies, forces and stresses of crystals by first principles, to train a potential on.

The labels go to OUT (extended XYZ) as they come, each whole on the disk before the next; what failed goes with its
cause to OUT.failures.jsonl. The same line again goes on where the last one stopped, whatever stopped it. A structure is
known by its content, so that FILE may be reordered or extended. OUT takes labels of one program with the same settings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maise_bridge.cli.interrupts import INTERRUPTED, termination_as_interrupt

if TYPE_CHECKING:
    from maise_bridge.labelling import LabelRun, LabelSettings, Outcome

_COLUMNS = {"atoms": "d", "eV/atom": "11.5f", "fmax eV/Å": "9.4f", "p GPa": "8.2f", "cpu s": "9.1f"}
_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="crystals in any format of ASE; FILE@INDEX picks some, as in ASE")
    add("--index", default=":", help="which structures of files without @INDEX [all]")
    add("--out", type=Path, required=True, help="extended XYZ to write, or to go on with")
    add("--calculator", metavar="NAME", help="gpaw, espresso, vasp or module:factory [the preset's]")
    add("--preset", metavar="NAME", help="converged settings: silicon (gpaw) or silicon-espresso")
    add("--ecut", type=float, metavar="EV", help="cutoff of plane waves, eV")
    kspacing_help = "spacing of k-point meshes, 1/Å with 2 pi; a second value is for cells of 1-2 atoms"
    add("--kspacing", type=float, nargs="+", metavar="K", help=kspacing_help)
    set_help = "option of the program, VALUE in JSON or text, dots for tables, as in input_data.system.nspin=2"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=set_help)
    add("--workers", type=int, default=1, metavar="N", help="processes, each on one thread [%(default)s]")
    add("--time-limit", type=float, metavar="S", help="seconds on the clock that a structure may take [no limit]")
    add("--cpu-limit", type=float, metavar="S", help="seconds of CPU time that a structure may take [no limit]")
    add("--retry", action="store_true", help="try again what failed before")
    add("--known", nargs="+", default=[], metavar="FILE", help="structures found in these files are left out")
    add("--python", metavar="PROGRAM", help="interpreter that has the program, if another one")
    parser.description = "\n".join((__doc__ or "").partition(": ")[2].splitlines())


def run(options: argparse.Namespace) -> int:
    """Run the command; 1 if a structure failed, now or before."""
    from maise_bridge.cli.files import read_structures
    from maise_bridge.labelling import Limits, open_run

    settings = _settings(options)
    limits = Limits(wall=options.time_limit, cpu=options.cpu_limit)
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}; at least one is needed")
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise ValueError(f"{options.out}: is a folder, or lies in none; name a file in a folder that exists")
    structures = [(item.name, item.atoms) for item in read_structures(options.files, options.index)]
    known = [item.atoms for item in read_structures(options.known)]
    with open_run(structures, settings, options.out, known=known, retry=options.retry) as labelling:
        _print_plan(len(structures), labelling)
        outcomes = labelling.outcomes(n_workers=options.workers, limits=limits, python=options.python)
        return _show_all(labelling, outcomes, options.out)


def _settings(options: argparse.Namespace) -> LabelSettings:
    from maise_bridge.labelling import make_settings

    return make_settings(
        options.calculator,
        preset=options.preset,
        ecut=options.ecut,
        kspacing=None if options.kspacing is None else tuple(options.kspacing),
        options=parse_options(options.set),
    )


def parse_options(texts: list[str]) -> dict[str, Any]:
    """Options of ``--set``: dots in names make tables, values are JSON or else text. Raises ValueError."""
    table: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        *tables, last = name.split(".")
        if not equals or not all((*tables, last)):
            raise ValueError(f"--set {text!r}: give NAME=VALUE, as in xc=PBE or convergence.energy=1e-5")
        inner = table
        for key in tables:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ValueError(f"--set {text!r}: {key} has a value already, so it is no table")
        try:
            inner[last] = json.loads(value)
        except ValueError:
            inner[last] = value
    return table


def _print_plan(n_structures: int, labelling: LabelRun) -> None:
    left_out = {
        "labelled before": labelling.n_labelled,
        "known": labelling.n_known,
        "repeated": labelling.n_repeated,
        "failed before (--retry tries again)": len(labelling.failed),
    }
    parts = [f"{count} {what}" for what, count in left_out.items() if count]
    print(", ".join([f"{n_structures} structures: {len(labelling.jobs)} to label", *parts]), flush=True)


def _show_all(labelling: LabelRun, outcomes: Iterator[Outcome], out: Path) -> int:
    """Print the outcomes as they come and what is there at the end; the exit status."""
    from maise_bridge.cli.tables import Table, progress

    names = [job.name for job in labelling.jobs]
    n_labelled = n_failed = 0
    interrupted = False
    try:
        with termination_as_interrupt(), progress(len(names)) as show:
            table = Table("structure", names, _COLUMNS)
            if names:
                print(table.header, flush=True)
            for outcome in outcomes:
                n_failed += outcome.failure is not None
                n_labelled += outcome.failure is None
                show(_line(table, outcome))
    except KeyboardInterrupt:
        interrupted = True
    print(f"{out}: {n_labelled} new labels, {labelling.n_labelled} before")
    if n_failed or labelling.failed:
        print(f"{out}.failures.jsonl: {n_failed} new failures, {len(labelling.failed)} before")
    if interrupted:
        left = len(names) - n_labelled - n_failed
        print(f"error: interrupted; {left} structures are left, run the same line again to go on", file=sys.stderr)
        return INTERRUPTED
    return _FAILED if n_failed or labelling.failed else 0


def _line(table: Any, outcome: Outcome) -> str:
    import numpy as np
    from ase.units import GPa

    job, atoms = outcome.job, outcome.atoms
    cpu = outcome.cpu if np.isfinite(outcome.cpu) else None
    if atoms is None:
        return f"{table.row(job.name, [len(job.atoms), None, None, None, cpu])}  FAILED: {outcome.failure}"
    results = atoms.calc.results
    fmax = float(np.linalg.norm(results["forces"], axis=1).max())
    pressure = -float(results["stress"][:3].mean()) / GPa
    note = f"  {atoms.info['note']}" if "note" in atoms.info else ""
    return table.row(job.name, [len(atoms), results["energy"] / len(atoms), fmax, pressure, cpu]) + note
