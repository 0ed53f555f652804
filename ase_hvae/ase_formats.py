"""MAISE's OUTCAR among the formats of ``ase.io``, as ``format="maise-out"``.

ASE loads this module with ``ase.io``, by the entry point group ``ase.ioformats``: the only door of ASE 3.29 by which
``ase run maise`` finds a calculator that no script has imported. It lies in this package because ASE looks for a
distribution named like the package of an entry point, and there is none named `maise_bridge`.
"""

from __future__ import annotations

from ase.utils.plugins import ExternalIOFormat

import maise_bridge  # noqa: F401  # makes get_calculator_class("maise") work

maise_out = ExternalIOFormat(desc="MAISE output (OUTCAR)", code="+S", module="maise_bridge.trajectory")
