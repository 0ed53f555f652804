"""GPAW in plane waves, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase.calculators.calculator import CalculatorSetupError

from ase_hvae.calculators.preflight import check_positive
from ase_hvae.calculators.record import CalculatorRecord, hash_bytes
from ase_hvae.calculators.watched import WatchedCalculator

ECUT = 400.0  # eV
KSPACING = 0.2  # 1/Å with 2 pi
_REFUSED = ("txt", "filename", "communicator", "h", "gpts")


class WatchedGpaw(WatchedCalculator):
    """GPAW under watch, a new one for each structure.

    A calculator that keeps its density refuses a structure of lower symmetry, and its energies depend on what came
    before; a new one does neither.
    """

    def prepare(self) -> None:
        """Forget the last structure."""
        self.inner = None
        super().prepare()


def open_gpaw(
    species: Sequence[str], options: Mapping[str, Any], directory: Path
) -> tuple[WatchedGpaw, CalculatorRecord]:
    """GPAW with settings for a relaxation that ASE drives.

    Parameters
    ----------
    species : sequence of str
        Chemical symbols that need a dataset.
    options : mapping
        ``ecut`` in eV (400 by default), ``kspacing`` in 1/Å with 2 pi (0.2), and keyword options of ``gpaw.GPAW``,
        which win over PBE, a Gamma-centred mesh of that spacing and a Fermi width of 0.05 eV. The mode must be plane
        waves: others have no stress.
    directory : Path
        Where ``gpaw.txt`` is written.

    Raises
    ------
    CalculatorSetupError
        If GPAW or a dataset is missing, or an option is unknown.
    """
    try:
        import gpaw
        from gpaw.setup_data import search_for_file
    except ImportError as error:
        raise CalculatorSetupError(f"GPAW cannot be imported: {error}; install gpaw and its datasets") from None
    settings = _settings(options)
    contents = []
    if "setups" not in settings and isinstance(settings["xc"], str):  # others have names of their own
        for symbol in species:
            try:
                contents.append(search_for_file(f"{symbol}.{settings['xc']}")[1])
            except (FileNotFoundError, RuntimeError) as error:
                raise CalculatorSetupError(f"GPAW has no dataset of {symbol}: {' '.join(str(error).split())}") from None

    def make(txt: str | None = str(directory / "gpaw.txt")) -> Any:
        """Return a calculator that writes its text to `txt`."""
        return gpaw.GPAW(**settings, txt=txt)

    try:
        make(txt=None)
    except (TypeError, ValueError, KeyError) as error:
        raise CalculatorSetupError(f"GPAW refuses the options in [gpaw]: {error}") from error
    record = CalculatorRecord(
        "gpaw",
        model=f"{settings['xc']} {' '.join(species)}",
        sha256=hash_bytes(contents) if contents else None,
        version=gpaw.__version__,
        settings=settings,
    )
    return WatchedGpaw("gpaw", make, directory), record


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword options of GPAW: the defaults and those given, which win."""
    check_positive("gpaw", options, "ecut", "kspacing")
    for name in _REFUSED:
        if name in options:
            raise CalculatorSetupError(f"{name} in [gpaw] is refused: a run sets it itself; leave it out")
    for name, own in (("ecut", "mode"), ("kspacing", "kpts")):
        if name in options and own in options:
            raise CalculatorSetupError(f"[gpaw] has both {name} and {own}; leave one of them out")
    settings = {
        "mode": {"name": "pw", "ecut": options.get("ecut", ECUT)},
        "xc": "PBE",
        "kpts": {"density": 1.0 / options.get("kspacing", KSPACING), "gamma": True},
        "occupations": {"name": "fermi-dirac", "width": 0.05},
    }
    settings |= {name: value for name, value in options.items() if name not in ("ecut", "kspacing")}
    mode = settings["mode"]
    if (mode.get("name") if isinstance(mode, Mapping) else mode) != "pw":
        raise CalculatorSetupError(f"mode = {mode!r} in [gpaw] has no stress; use plane waves, ecut = ENERGY in eV")
    return settings
