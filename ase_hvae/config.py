"""Options of a run: one frozen dataclass per stage, read from and written to TOML.

Every field carries its unit and help text in its metadata; the command line builds its flags from them. User-facing
units (GPa, meV/atom) appear only here and in reports.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase_hvae.errors import ConfigError


def option(
    default: Any,
    help: str,
    *,
    unit: str | None = None,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
) -> Any:
    """Dataclass field of one option with its help text, unit and limits (`above` excludes its value)."""
    metadata = {
        "help": help,
        "unit": unit,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """What the run is about and how large it is."""

    seed: int = option(0, "seed of every random number of the run", minimum=0)
    n: int = option(100, "number of candidates to relax", minimum=1)
    model: str | None = option(None, "HVAE weights (.safetensors); default: the shipped silicon weights")
    known: str | None = option(None, "file or folder of known crystals; default: the shipped table of the element")
    also_known: str | None = option(
        None, "further files, folders or ase.db databases, comma-separated, whose crystals are not called new"
    )
    calculator: str = option(
        "maise",
        "calculators in order of preference, comma-separated: maise, maise-executable, vasp, espresso, gpaw or "
        "module:factory",
    )
    potential: str = option("silicon", "MAISE model: a shipped name or a model file")
    workers: int = option(0, "worker processes; 0: one per core", minimum=0)
    database: str | None = option(
        None,
        "PostgreSQL database for the candidates, as postgresql://user@host:5432/name; its password is taken from "
        "PGPASSWORD or ~/.pgpass; default: candidates.db in the run folder",
    )
    executor: str = option(
        "processes", "where candidates are worked on: processes, dask or a scheduler as tcp://host:8786"
    )
    time_limit: float | None = option(
        None,
        "longest time in one stage for a candidate, or a batch of 32, in a worker process; default: 600 with maise, "
        "none with others; 0: none",
        unit="s",
        minimum=0.0,
    )


@dataclass(frozen=True)
class SamplingConfig:
    """Where in the latent space replicas are taken."""

    sampling: str = option("prior", "distribution of the latents", choices=("prior", "grid", "posterior", "around"))
    around: str | None = option(None, "name of the known crystal to sample around (sampling = around)")
    n_replicas: int = option(0, "most replicas to decode; 0: as many as n candidates need", minimum=0)


@dataclass(frozen=True)
class ReconstructConfig:
    """From a replica to crystals."""

    composition: str | None = option(
        None, "formula of the crystals, of the elements of the weights, as SiC; default: the weights'"
    )
    natoms: str = option("1-8", "atoms in the primitive cell, as 2, 1-8 or 2,4,8")
    spacegroups: str = option("1-230", "space groups to build crystals in, as 227, 195-230 or 141,191,227")
    volume: float | None = option(None, "volume per atom; default: the replica's", unit="Å^3", above=0.0)
    min_distance: float | None = option(
        None,
        "shortest distance; default, for each pair of elements: 0.9 of the covalent bond or, if less, of the "
        "replica's shortest",
        unit="Å",
        above=0.0,
    )
    n_proposals: int = option(1000, "proposed crystals per replica; ten times as many for more than 8 atoms", minimum=1)
    n_steered: int = option(32, "proposals steered per replica after screening", minimum=1)
    per_replica: int = option(3, "most candidates kept per replica", minimum=1)
    pearson_threshold: float = option(0.13, "largest Pearson distance to the replica", above=0.0, maximum=2.0)
    volume_tolerance: float = option(0.1, "relative half-width of the window of volumes", above=0.0, maximum=0.9)


@dataclass(frozen=True)
class SymmetryConfig:
    """Space-group search."""

    symprec: float = option(0.05, "tolerance of the space-group search", unit="Å", above=0.0)


@dataclass(frozen=True)
class RelaxConfig:
    """Relaxation of positions and cell."""

    fmax: float = option(0.01, "largest force at convergence", unit="eV/Å", above=0.0)
    max_steps: int = option(500, "most optimizer steps", minimum=1)
    optimizer: str = option("BFGS", "optimizer", choices=("BFGS", "FIRE"))
    pressure: float = option(0.0, "hydrostatic pressure", unit="GPa")


@dataclass(frozen=True)
class PhononConfig:
    """Dynamical stability of the best candidates, and the crystals that soft modes of unstable ones lead to."""

    n_phonons: int = option(30, "lowest candidates checked for phonon stability", minimum=0)
    phonon_window: float = option(300.0, "check only candidates this far above the reference", unit="meV/atom")
    min_length: float = option(10.0, "shortest supercell length", unit="Å", above=0.0)
    displacement: float = option(0.01, "displacement of atoms", unit="Å", above=0.0)
    children_depth: int = option(
        1, "generations of children, one for each unstable candidate, along its softest mode; 0: none", minimum=0
    )
    child_atoms: int = option(32, "most atoms of a child before its symmetry is found", minimum=1)
    temperature: float | None = option(
        None, "temperature of the free energy of stable candidates; default: none", unit="K", minimum=0.0
    )


@dataclass(frozen=True)
class ElasticityConfig:
    """Elastic tensors of the best candidates without soft phonons."""

    n_elastic: int = option(10, "lowest phonon-stable candidates whose elastic tensor is computed", minimum=0)


CALCULATOR_TABLES = ("vasp", "espresso", "gpaw")
STAGES: dict[str, type] = {
    "run": RunConfig,
    "sampling": SamplingConfig,
    "reconstruct": ReconstructConfig,
    "symmetry": SymmetryConfig,
    "relax": RelaxConfig,
    "phonons": PhononConfig,
    "elasticity": ElasticityConfig,
}


@dataclass(frozen=True)
class GenerateConfig:
    """All options of ``generate``, a section per stage, and tables of keyword options for calculators.

    `vasp`, `espresso` and `gpaw` are handed on to the calculator of that name, which checks them, in its own units.
    They have no flags on the command line.
    """

    run: RunConfig = RunConfig()
    sampling: SamplingConfig = SamplingConfig()
    reconstruct: ReconstructConfig = ReconstructConfig()
    symmetry: SymmetryConfig = SymmetryConfig()
    relax: RelaxConfig = RelaxConfig()
    phonons: PhononConfig = PhononConfig()
    elasticity: ElasticityConfig = ElasticityConfig()
    vasp: dict[str, Any] = field(default_factory=dict)
    espresso: dict[str, Any] = field(default_factory=dict)
    gpaw: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for section, stage, spec in iterate_options():
            _check(section, spec, getattr(getattr(self, section), spec.name), _field_type(stage, spec.name))
        parse_natoms(self.reconstruct.natoms)
        parse_spacegroups(self.reconstruct.spacegroups)
        if (self.sampling.sampling == "around") != (self.sampling.around is not None):
            raise ConfigError("sampling = 'around' and around = NAME go together; give both or neither")
        names = [name.strip() for name in self.run.calculator.split(",")]
        if self.run.potential != "silicon" and not {"maise", "maise-executable"} & set(names):
            raise ConfigError(f"potential = {self.run.potential!r} needs maise in calculator = {self.run.calculator!r}")
        for name in CALCULATOR_TABLES:
            object.__setattr__(self, name, _plain_table(name, getattr(self, name)))
            if getattr(self, name) and name not in names:
                raise ConfigError(
                    f"[{name}] holds options, but calculator = {self.run.calculator!r} does not use {name}; add it to "
                    "the list or leave the table out"
                )

    def with_options(self, **options: Any) -> GenerateConfig:
        """Copy with single options replaced by name, whatever their section; tables of calculators as a whole.

        Raises
        ------
        ConfigError
            If an option does not exist or its value is out of range.
        """
        sections: dict[str, dict[str, Any]] = {}
        where = {spec.name: section for section, _, spec in iterate_options()}
        tables = {name: options.pop(name) for name in CALCULATOR_TABLES if name in options}
        for name, value in options.items():
            if name not in where:
                raise ConfigError(f"unknown option {name!r}; options are {', '.join(sorted(where))}")
            sections.setdefault(where[name], {})[name] = value
        changed = {
            section: dataclasses.replace(getattr(self, section), **values) for section, values in sections.items()
        }
        return dataclasses.replace(self, **changed, **tables)

    @property
    def calculator_settings(self) -> dict[str, dict[str, Any]]:
        """Tables of keyword options by the name of the calculator."""
        return {name: getattr(self, name) for name in CALCULATOR_TABLES}

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Sections with their options, without empty tables and options that are None: TOML has no null."""
        return {
            section: {name: value for name, value in values.items() if value is not None}
            for section, values in dataclasses.asdict(self).items()
            if values
        }


def iterate_options() -> Iterator[tuple[str, type, dataclasses.Field]]:
    """Section name, section class and field of every option."""
    for section, stage in STAGES.items():
        for spec in dataclasses.fields(stage):
            yield section, stage, spec


def option_type(stage: type, name: str) -> type:
    """Plain Python type of an option: int, float or str."""
    annotation = _field_type(stage, name)
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return annotation


def parse_natoms(text: str) -> tuple[int, ...]:
    """Numbers of atoms from ``2``, ``1-8`` or ``2,4,6-8``; sorted, without repeats.

    Raises
    ------
    ConfigError
        If the text is no such list or a number is below 1.
    """
    return _parse_numbers("natoms", text, "8, 1-8 or 2,4,8")


def parse_spacegroups(text: str) -> tuple[int, ...]:
    """International numbers of space groups from ``227``, ``195-230`` or ``141,191,227``, as `parse_natoms`."""
    numbers = _parse_numbers("spacegroups", text, "227, 195-230 or 141,191,227")
    if max(numbers) > 230:
        raise ConfigError(f"spacegroups = {text!r} must hold numbers from 1 to 230")
    return numbers


def _parse_numbers(name: str, text: str, examples: str) -> tuple[int, ...]:
    """Sorted numbers of a list of numbers and ranges."""
    numbers: set[int] = set()
    try:
        for part in str(text).split(","):
            first, _, last = part.strip().partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ConfigError(f"{name} = {text!r} is no list of numbers; write {examples}") from None
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{name} = {text!r} must hold numbers of at least 1, ranges rising; write {examples}")
    return tuple(sorted(numbers))


def read_config(path: str | Path) -> GenerateConfig:
    """Configuration from a TOML file with one table per section.

    Raises
    ------
    ConfigError
        If the file is missing, is no TOML, or names an unknown section or option; the message names the file.
    """
    content = read_tables(path)
    try:
        return config_from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_tables(path: str | Path) -> dict[str, Any]:
    """Contents of a TOML file; raises `ConfigError` if it is missing or no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def config_from_dict(content: Mapping[str, Any]) -> GenerateConfig:
    """Inverse of `GenerateConfig.to_dict`; raises `ConfigError` on unknown sections or options."""
    options: dict[str, Any] = {}
    for section, values in content.items():
        if section not in (*STAGES, *CALCULATOR_TABLES) or not isinstance(values, Mapping):
            known = ", ".join((*STAGES, *CALCULATOR_TABLES))
            raise ConfigError(f"unknown section [{section}]; sections are {known}")
        if section in CALCULATOR_TABLES:
            options[section] = values
            continue
        names = {spec.name for spec in dataclasses.fields(STAGES[section])}
        for name in values:
            if name not in names:
                raise ConfigError(f"unknown option {name!r} in [{section}]; options are {', '.join(sorted(names))}")
        options.update(values)
    return GenerateConfig().with_options(**options)


def write_config(config: GenerateConfig, path: str | Path) -> None:
    """Write every option, resolved, as TOML, in one step: a killed run leaves the old file or the new one."""
    import tomli_w

    partial = Path(path).with_name(f".{Path(path).name}.part")
    partial.write_text(tomli_w.dumps(config.to_dict()), encoding="utf-8")
    partial.replace(path)


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Entries of two tables that differ, in words; a table that is missing on one side has no entries there."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        old_table, new_table = ({} if value is None else value for value in (old, new))
        if (old or new) and isinstance(old_table, Mapping) and isinstance(new_table, Mapping):
            yield from differences(old_table, new_table, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} was {old!r}, now {new!r}"


def _plain_table(section: str, table: Any) -> dict[str, Any]:
    """Deep copy of a calculator's options in TOML's own types, tuples as lists; anything else is refused."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{section} = {table!r} must be a table of options, in a script a dict")

    def plain(where: str, value: Any) -> Any:
        """Return a copy of a value in TOML's types; `where` names it in errors."""
        if isinstance(value, Mapping):
            return {str(name): plain(f"{where}.{name}", part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [plain(where, part) for part in value]
        if not isinstance(value, str | bool | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise ConfigError(f"{where} = {value!r} must be text, true, false, a finite number, a list or a table")
        return value

    return {str(name): plain(f"{section}.{name}", value) for name, value in table.items()}


def _field_type(stage: type, name: str) -> Any:
    return typing.get_type_hints(stage)[name]


def _check(section: str, spec: dataclasses.Field, value: Any, annotation: Any) -> None:
    """Refuse a value of the wrong type or out of its range."""
    kinds = typing.get_args(annotation) or (annotation,)
    where = f"{spec.name} = {value!r} in [{section}]"
    if value is None and type(None) in kinds:
        return
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise ConfigError(f"{where} must be {wanted}")
    limits = spec.metadata
    if limits["choices"] and value not in limits["choices"]:
        raise ConfigError(f"{where} must be one of {', '.join(limits['choices'])}")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ConfigError(f"{where} must be finite")
    if limits["minimum"] is not None and value < limits["minimum"]:
        raise ConfigError(f"{where} must be at least {limits['minimum']}")
    if limits["above"] is not None and value <= limits["above"]:
        raise ConfigError(f"{where} must be above {limits['above']}")
    if limits["maximum"] is not None and value > limits["maximum"]:
        raise ConfigError(f"{where} must be at most {limits['maximum']}")
