"""How ASE knows the calculator ``maise``: by its registry of classes and by its plugins.

ASE 3.29 finds calculators by name in a registry that asks no plugins, hence :func:`register`. Its plugins, of the entry
point group ``ase.plugins``, are an experiment in the namespace ``ase._4``; where that is missing there are none.
"""

from __future__ import annotations

import logging
from typing import Any

from ase.calculators.calculator import external_calculators, register_calculator_class

from maise_bridge.calculator import MaiseCalculator

logger = logging.getLogger(__name__)

NAME = "maise"
_CITATION = "S. Hajinazar et al., Comput. Phys. Commun. 259, 107679 (2021)"
_DISTRIBUTION = "ase_hvae"  # what pip installs; there ASE looks for version and summary

__all__ = ["NAME", "register"]


def register() -> None:
    """Make ``ase.calculators.calculator.get_calculator_class("maise")`` return MaiseCalculator.

    A class that another package registered before under that name stays, and a warning is logged.
    """
    known = external_calculators.get(NAME)
    if known is None:
        register_calculator_class(NAME, MaiseCalculator)
    elif known is not MaiseCalculator:
        logger.warning("ASE's calculator %r is %s, registered before; use maise_bridge.MaiseCalculator", NAME, known)


def __getattr__(name: str) -> Any:
    if name == "__ase_plugins__":
        return _plugins()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _plugins() -> set[Any]:
    """Plugins of this package; ASE asks for them as ``__ase_plugins__``."""
    try:
        from ase._4.plugins.plugin import CalculatorPlugin
    except ImportError as error:
        logger.info("this ASE has no plugins of calculators (%s)", error)
        return set()

    class MaisePlugin(CalculatorPlugin):
        """Calculator plugin whose distribution is not named like its package."""

        package = _DISTRIBUTION

    implementation = "maise_bridge.calculator.MaiseCalculator"
    return {MaisePlugin(NAME, citation=_CITATION, implementation=implementation)}
