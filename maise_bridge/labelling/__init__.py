"""Labels of structures by first principles: parallel, resumable, with settings and causes of failures on record."""

from maise_bridge.labelling.files import KnownStructures, structure_id
from maise_bridge.labelling.processes import Limits
from maise_bridge.labelling.run import Job, LabelRun, Outcome, open_run
from maise_bridge.labelling.settings import PRESETS, LabelSettings, make_settings

__all__ = [
    "PRESETS",
    "Job",
    "KnownStructures",
    "LabelRun",
    "LabelSettings",
    "Limits",
    "Outcome",
    "make_settings",
    "open_run",
    "structure_id",
]
