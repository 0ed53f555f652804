"""The programs themselves, opened within a worker process: one fresh calculator for every structure."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError

from maise_bridge.labelling.settings import LabelSettings, k_mesh

Attempt = tuple[str, Atoms, Any]  # note, structure, calculator


@dataclass(frozen=True, eq=False)
class Program:
    """A program that is ready to compute.

    Attributes
    ----------
    identity : mapping
        What decides about the numbers beside the settings: version of the program, hashes of pseudopotentials.
    versions : mapping
        Versions of ASE, numpy and Python, for the record.
    attempts : callable
        Yields, for a structure and a folder to run in, calculators to try one after the other, each with a note and
        the structure that it is for.
    verify : callable
        Called with the folder and the calculator after it; raises CalculationFailed if the end was not a good one.
    """

    identity: Mapping[str, str]
    versions: Mapping[str, str]
    attempts: Callable[[Atoms, Path], Iterator[Attempt]]
    verify: Callable[[Path, Any], None] = field(default=lambda folder, calc: None)


@dataclass(frozen=True, eq=False)
class Computed:
    """Results of one structure.

    Attributes
    ----------
    atoms : Atoms
        What was computed: the structure, or its standardized primitive cell.
    energy, free_energy : float
        Extrapolated to zero smearing as always in ASE, and with the smearing's entropy (NaN if not known); eV.
    forces : ndarray, shape (n_atoms, 3)
        eV/Å.
    stress : ndarray, shape (6,)
        eV/Å³.
    note : str
        What was changed to get there, or empty.
    """

    atoms: Atoms
    energy: float
    free_energy: float
    forces: np.ndarray
    stress: np.ndarray
    note: str


def open_program(settings: LabelSettings, species: Sequence[str]) -> Program:
    """Import and check the program of some settings.

    Raises
    ------
    CalculatorSetupError
        If it cannot be imported or started, or a pseudopotential is missing.
    """
    openers = {"gpaw": _open_gpaw, "espresso": _open_espresso, "vasp": _open_vasp}
    return openers.get(settings.calculator, _open_factory)(settings, species)


def compute(program: Program, atoms: Atoms, folder: Path) -> Computed:
    """Compute one structure; trouble with symmetry is met by the next attempt.

    Raises
    ------
    Exception
        Whatever the program raises at its last attempt, or at trouble of another kind.
    """
    failure: Exception | None = None
    for note, trial, calc in program.attempts(atoms, folder):
        trial.calc = calc
        try:
            energy = float(trial.get_potential_energy())
            forces, stress = np.array(trial.get_forces()), np.array(trial.get_stress(voigt=True))
            program.verify(folder, calc)
        except Exception as error:  # of a foreign program, whose errors have no common type
            if "ymmetr" not in f"{type(error).__name__}{error}":
                raise
            failure = error
            continue
        free = (getattr(calc, "results", None) or {}).get("free_energy")
        free_energy = float("nan") if free is None else float(free)
        return Computed(trial, energy, free_energy, forces, stress, note)
    assert failure is not None
    raise failure


def primitive_cell(atoms: Atoms, *, symprec: float = 1e-4) -> Atoms:
    """Return the primitive cell with the symmetry made exact that holds within `symprec` (Å)."""
    from ase.spacegroup.symmetrize import get_symmetrized_atoms

    symmetrized, dataset = get_symmetrized_atoms(atoms, symprec=symprec)
    first = np.unique(dataset.mapping_to_primitive, return_index=True)[1]
    primitive = symmetrized[first]
    primitive.set_cell(dataset.primitive_lattice)
    primitive.wrap()
    return primitive


def _versions() -> dict[str, str]:
    return {"ase": ase.__version__, "numpy": np.__version__, "python": platform.python_version()}


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()[:16]


def _open_gpaw(settings: LabelSettings, species: Sequence[str]) -> Program:
    try:
        import gpaw
        from gpaw.setup_data import search_for_file
    except ImportError as error:
        raise CalculatorSetupError(
            f"GPAW cannot be imported: {error}; install gpaw and its datasets, or name its interpreter with --python"
        ) from None
    if importlib.util.find_spec("spglib") is None:  # for the second attempt, found missing only when the first fails
        raise CalculatorSetupError(f"{sys.executable} lacks spglib, which primitive cells take; install it beside GPAW")
    identity = {"gpaw": str(gpaw.__version__)}
    if "setups" not in settings.options:
        for symbol in species:
            name = f"{symbol}.{settings.options['xc']}"
            try:
                identity[name] = _digest(search_for_file(name)[1])
            except (FileNotFoundError, RuntimeError) as error:
                raise CalculatorSetupError(f"GPAW has no dataset {name}: {' '.join(str(error).split())}") from None

    def make(atoms: Atoms, symmetry: Mapping[str, bool]) -> Any:
        """Return a calculator for a structure and the use of symmetry."""
        keywords = settings.for_structure(len(atoms))
        mode = {"name": "pw", "ecut": keywords.pop("ecut")}
        kpts = {"size": k_mesh(atoms, keywords.pop("kspacing")), "gamma": True}
        return gpaw.GPAW(**{"mode": mode, "kpts": kpts, "txt": None, "symmetry": symmetry, **keywords})

    def attempts(atoms: Atoms, folder: Path) -> Iterator[Attempt]:
        """Yield ways to compute a structure, the fastest first: note, structure and calculator."""
        full = {"point_group": True, "symmorphic": False}
        yield "", atoms.copy(), make(atoms, full)
        primitive = primitive_cell(atoms)
        yield "standardized primitive cell", primitive, make(primitive, full)
        yield "without fractional translations", atoms.copy(), make(atoms, {"point_group": True})
        yield "without point group", atoms.copy(), make(atoms, {"point_group": False})

    return Program(identity, _versions(), attempts)


def _open_espresso(settings: LabelSettings, species: Sequence[str]) -> Program:
    from ase.calculators.espresso import Espresso, EspressoProfile
    from ase.config import cfg

    options = settings.options
    place = options.get("pseudo_dir") or cfg.parser.get("espresso", "pseudo_dir", fallback=None)
    if place is None or not Path(place).is_dir():
        raise CalculatorSetupError(f"the folder of pseudopotentials is {place}; give --set pseudo_dir=FOLDER")
    profile = EspressoProfile(command=options["command"], pseudo_dir=Path(place).resolve())
    try:
        identity = {"pw.x": str(profile.version())}
    except (AssertionError, OSError, UnicodeDecodeError) as error:
        message = f"{options['command']!r} is no pw.x that prints its version ({error}); give --set command=PW.X"
        raise CalculatorSetupError(message) from error
    for symbol in species:
        name = options["pseudopotentials"].get(symbol)
        if name is None or not (Path(place) / name).is_file():
            raise CalculatorSetupError(f"the pseudopotential of {symbol} is {name}, which {place} does not hold")
        identity[f"{symbol} pseudopotential"] = _digest((Path(place) / name).read_bytes())

    def attempts(atoms: Atoms, folder: Path) -> Iterator[Attempt]:
        """Yield the one way to compute a structure."""
        keywords = settings.for_structure(len(atoms))
        data = {section.lower(): dict(values) for section, values in keywords.pop("input_data").items()}
        data.setdefault("control", {}).update(calculation="scf", tstress=True, tprnfor=True, disk_io="none")
        size = k_mesh(atoms, keywords.pop("kspacing"))
        names = {symbol: keywords["pseudopotentials"][symbol] for symbol in set(atoms.symbols)}
        extra = {name: value for name, value in keywords.items() if name not in ("command", "pseudo_dir")}
        extra |= {"pseudopotentials": names, "kpts": size, "koffset": (0, 0, 0)}
        yield "", atoms.copy(), Espresso(profile=profile, directory=folder, input_data=data, **extra)

    return Program(identity, _versions(), attempts, _verify_espresso)


def _verify_espresso(folder: Path, calc: Any) -> None:
    text = (folder / "espresso.pwo").read_text(encoding="utf-8", errors="replace")
    if "convergence has been achieved" not in text:
        raise CalculationFailed("the electronic loop did not converge; raise electron_maxstep or lower mixing_beta")
    if "JOB DONE" not in text:
        raise CalculationFailed("the output of pw.x is cut off: it was killed or the disk is full")


def _open_vasp(settings: LabelSettings, species: Sequence[str]) -> Program:
    from ase.calculators.vasp import Vasp

    def make(atoms: Atoms, folder: Path) -> Any:
        """Return a calculator that runs in a folder."""
        keywords = settings.for_structure(len(atoms))
        mesh = {"kpts": k_mesh(atoms, keywords.pop("kspacing")), "gamma": True}
        fixed = {"nsw": 0, "ibrion": -1, "isif": 3, "lwave": False, "lcharg": False}
        return Vasp(directory=str(folder), txt="vasp.out", **{**mesh, **keywords, **fixed})

    identity = {}
    for symbol in species:
        probe = Atoms(symbol, cell=[3.0, 3.0, 3.0], pbc=True)
        try:
            calc = make(probe, Path("unused"))
            calc.make_command(calc.command)
            calc.initialize(probe)
            identity[f"{symbol} POTCAR"] = _digest(Path(calc.ppp_list[0]).read_bytes())
        except (RuntimeError, CalculatorSetupError, NotImplementedError, KeyError, TypeError, OSError) as error:
            raise CalculatorSetupError(f"VASP cannot run on {symbol}: {' '.join(str(error).split())}") from error

    def attempts(atoms: Atoms, folder: Path) -> Iterator[Attempt]:
        """Yield the one way to compute a structure."""
        yield "", atoms.copy(), make(atoms, folder)

    return Program(identity, _versions(), attempts, _verify_vasp)


def _verify_vasp(folder: Path, calc: Any) -> None:
    if b"</modeling>" not in (folder / "vasprun.xml").read_bytes()[-200:]:
        raise CalculationFailed("vasprun.xml is cut off: VASP was killed or the disk is full")
    if calc.converged is not True:
        raise CalculationFailed("the electronic loop did not converge; raise nelm or change algo")


def _open_factory(settings: LabelSettings, species: Sequence[str]) -> Program:
    name = settings.calculator
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
        factory: Callable[..., Any] = getattr(module, attribute)
    except (ImportError, AttributeError) as error:
        raise CalculatorSetupError(f"{name}: cannot import: {error}") from None

    def make() -> Any:
        """Return a new calculator of the factory."""
        return factory(**settings.options)

    try:
        calc = make()
    except Exception as error:  # of foreign code
        raise CalculatorSetupError(f"{name} made no calculator: {type(error).__name__}: {error}") from error
    if not hasattr(calc, "get_potential_energy"):
        raise CalculatorSetupError(f"{name} made a {type(calc).__name__}, which is no ASE calculator")
    missing = {"energy", "forces", "stress"} - set(getattr(calc, "implemented_properties", ()))
    if missing:
        raise CalculatorSetupError(f"{name} made a {type(calc).__name__}, which has no {', '.join(sorted(missing))}")
    identity = {name: str(getattr(module, "__version__", "")), "class": type(calc).__name__}

    def attempts(atoms: Atoms, folder: Path) -> Iterator[Attempt]:
        """Yield the one way to compute a structure."""
        yield "", atoms.copy(), make()

    return Program(identity, _versions(), attempts)
