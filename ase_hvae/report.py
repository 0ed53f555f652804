"""What a person reads at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ase_hvae.candidate import Candidate
from ase_hvae.ranking import format_table

SHOWN = 30  # rows of the table; the database has all


def describe(folder: str | Path, ranked: Sequence[Candidate]) -> str:
    """Table of the first ranked candidates and a few lines about the funnel of the run in `folder`."""
    summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
    funnel, reference = summary["funnel"], summary["reference"]
    search = funnel["reconstruct"]
    seconds = summary["seconds"]
    null = summary["pearson_null"]
    known = "" if null is None else f", different known crystals have {null:.2f} on average"
    children = funnel["children"]
    shown = ranked[:SHOWN]
    lines = [
        format_table(shown, n_more=funnel["ranked"] - len(shown)),
        "",
        f"dE: energy above {reference['name']} by {summary['calculator']['name']}; "
        f"r: Pearson correlation of g(r){known}",
        f"{search['replicas']} replicas, {search['proposed']} proposals, {search['accepted']} accepted, "
        f"{funnel['candidates']} candidates and {children['made']} children: {funnel['failed']} failed, "
        f"{funnel['duplicates']} duplicates, {funnel['ranked']} ranked ({funnel['new']} new)",
        f"children of soft modes: {children['refused']} refused, {children['failed']} failed, "
        f"{children['duplicates']} duplicates, {children['ranked']} ranked ({children['new']} new)",
        "seconds: " + ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items()),
        f"results in {folder}: {summary['database']}, structures/, summary.json, config.toml, log.txt",
    ]
    return "\n".join(lines)
