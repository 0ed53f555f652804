"""The `maise` program as an ASE calculator: files written, run watched, every failure turned into an error."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, ReadError
from ase.calculators.genericfileio import BaseProfile, CalculatorTemplate, GenericFileIOCalculator

from maise_bridge import outputs
from maise_bridge.poscar import species_order
from maise_bridge.run_folder import (
    EXACT,
    away_from_faces,
    boxed,
    clear,
    explain,
    load_model,
    read_order,
    read_run,
    relaxed_atoms,
    setup_tags,
    write_inputs,
)

_GPA = 1.0 / 160.2176565  # eV/Å³, with MAISE's rounding of e
_ENVIRONMENT = {"MALLOC_PERTURB_": "255"}  # memory starts as zeros: MAISE adds into some that it never cleared
Mode = Literal["full", "ions", "cell", "zz"]
_MODES: dict[str, int] = {"ions": 2, "full": 3, "cell": 7, "zz": 8}
_MINIMIZERS = {"bfgs": 0, "cg-pr": 1, "cg-fr": 2, "steepest-descent": 3}


class MaiseProfile(BaseProfile):
    """How to start `maise` on this machine; section ``[maise]`` of ASE's configuration.

    Parameters
    ----------
    command : str
        Executable with whatever goes before it, such as ``srun``; it gets no arguments.
    timeout : float, optional
        Longest time of one run, after which it and its children are killed; s. No limit by default.
    """

    configvars = {"timeout"}  # noqa: RUF012

    def __init__(self, command: str = "maise", *, timeout: float | str | None = None) -> None:
        super().__init__(command)
        self.timeout = None if timeout is None else float(timeout)
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout is {timeout}; give a positive number of seconds, or None")

    def get_calculator_command(self, inputfile: str | None) -> list[str]:
        """No arguments: any would switch MAISE to its analysis mode."""
        return []

    def version(self) -> str:
        """Version that the program prints, such as ``3.0.00``."""
        with tempfile.TemporaryDirectory() as folder:
            self._call(Path(folder), "stdout.txt", "stderr.txt")
            found = re.search(r"version\s+maise\.(\S+)", (Path(folder) / "stdout.txt").read_text(errors="replace"))
        if not found:
            raise CalculatorSetupError(f"{self.command!r} does not print a version: it is not MAISE")
        return found[1]

    def run(
        self,
        directory: Path,
        inputfile: str | None,
        outputfile: str,
        errorfile: str | None = None,
        append: bool = False,
    ) -> None:
        """Run MAISE in a directory.

        Raises
        ------
        CalculatorSetupError
            If the command does not exist or must not be executed.
        CalculationFailed
            If the program takes too long, is killed, or ends with an error.
        """
        code = self._call(directory, outputfile, errorfile or "stderr.txt")
        if code:
            number = -code if code < 0 else code - 128  # a shell in between reports 128 + signal
            if number in set(signal.Signals):
                reason = f"was killed by {signal.Signals(number).name}; out of memory?"
            else:
                reason = f"ended with exit code {code}"
            raise CalculationFailed(explain(directory, f"{self.command!r} {reason}"))

    def _call(self, directory: Path, outputfile: str, errorfile: str) -> int:
        with open(directory / outputfile, "wb") as out, open(directory / errorfile, "wb") as err:
            try:
                process = subprocess.Popen(
                    self.get_command(None),
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env={**os.environ, **_ENVIRONMENT},
                    start_new_session=True,
                )
            except OSError as error:
                remedy = "set command in section [maise] of ASE's configuration, or pass profile=MaiseProfile(command)"
                raise CalculatorSetupError(f"cannot start {self.command!r} ({error.strerror}); {remedy}") from error
            try:
                return process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                message = f"{self.command!r} took longer than the timeout of {self.timeout:g} s and was killed"
                raise CalculationFailed(f"{message} in {directory}; raise the timeout of the profile") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


class MaiseTemplate(CalculatorTemplate):
    """Which files `maise` reads and writes.

    ``ase-sort.dat`` holds, for each row of the POSCAR, the index of the atom in ASE.
    """

    def __init__(self) -> None:
        super().__init__("maise", ["energy", "free_energy", "forces", "stress"])
        self.inputname = "setup"
        self.outputname = "stdout.txt"
        self.errorname = "stderr.txt"

    def load_profile(self, cfg: Any, **kwargs: Any) -> MaiseProfile:
        """Profile of section ``[maise]``."""
        return MaiseProfile.from_config(cfg, self.name, **kwargs)

    def write_input(
        self,
        profile: MaiseProfile,
        directory: str | os.PathLike,
        atoms: Atoms,
        parameters: Mapping[str, Any],
        properties: Iterable[str] = (),
    ) -> None:
        """Write `setup`, `POSCAR` and `model`; results of an earlier run are removed first.

        Raises
        ------
        CalculatorSetupError
            If the model is missing, damaged or does not cover the structure, or MAISE has no such run.
        CalculationFailed
            If a position is not finite, or the files cannot be written.
        """
        directory = Path(directory)
        clear(directory)
        exact = parameters.get("exact_forces", False)
        path, species, cutoff = load_model(parameters["model"])
        tags = setup_tags(atoms, parameters, cutoff)
        try:
            order = species_order(atoms, species)
        except ValueError as error:
            raise CalculatorSetupError(f"model {path}: {error}; pass another model or calculator") from error
        write_inputs(directory, tags, path, boxed(atoms), species, order)
        if exact:
            shifted = away_from_faces(boxed(atoms))
            write_inputs(directory / EXACT, {**tags, "JOBT": 23}, path, shifted, species, order)

    def execute(self, directory: str | os.PathLike, profile: MaiseProfile) -> None:
        """Run MAISE; a second time for exact forces, if they were asked for."""
        for folder in (Path(directory), Path(directory) / EXACT):
            if folder.is_dir():
                profile.run(folder, self.inputname, self.outputname, self.errorname)

    def read_results(self, directory: str | os.PathLike) -> dict[str, Any]:
        """Read a single point, atoms in ASE's order.

        Raises
        ------
        CalculationFailed
            If the run did not end well; the message says why.
        """
        directory = Path(directory)
        outcar, progress = read_run(directory)
        step = outcar.steps[-1]
        assert step.forces is not None
        order = read_order(directory, len(step.forces))
        forces = step.forces
        if (directory / EXACT).is_dir():
            try:
                forces = outputs.read_cell_test(directory / EXACT / self.outputname)
            except (OSError, ReadError) as error:
                raise CalculationFailed(explain(directory / EXACT, f"no exact forces: {error}")) from error
            if forces.shape != step.forces.shape or not np.abs(forces - step.forces).max() < 1e-4:
                raise CalculationFailed(f"{directory}: the forces of JOBT 23 and of JOBT 20 disagree")
        energy = float(progress.enthalpies[-1])
        results: dict[str, Any] = {"energy": energy, "free_energy": energy, "forces": np.empty_like(forces)}
        results["forces"][order] = forces
        if outcar.header.get("dimensionality") == "3":
            results["stress"] = step.stress
        return results


@dataclass(frozen=True, eq=False)
class MaiseRelaxation:
    """End of a relaxation by MAISE.

    Attributes
    ----------
    atoms : Atoms
        Relaxed copy, in the order of the start, with energy, forces and stress of a fresh single point attached.
    converged : bool
        Whether the last change of the enthalpy is below the tolerance.
    n_iterations : int
        Of the minimiser.
    enthalpies : ndarray, shape (n_iterations + 1,)
        Energy plus pressure times volume; eV per cell.
    """

    atoms: Atoms
    converged: bool
    n_iterations: int
    enthalpies: np.ndarray


class Maise(GenericFileIOCalculator):
    """ASE calculator that runs the `maise` program; crystals (pbc in three directions) and clusters (in none).

    Forces have the six decimals that MAISE prints, energies sixteen, stresses eight in kB.

    Parameters
    ----------
    model : str or Path
        Name of a shipped model, or a model file.
    profile : MaiseProfile, optional
        By default from section ``[maise]`` of ASE's configuration, else the command ``maise``.
    directory : str or Path
        Where to run; its MAISE results are overwritten. One directory serves one calculation at a time.
    core_repulsion : bool or float
        MAISE's short-range repulsion: True for its default of 100 eV, a number (eV), or False.
    shortest_distance : float
        Fail if atoms are closer than this times the sum of MAISE's core radii; 0 accepts all.
    exact_forces : bool
        Forces with 12 decimals, at the price of 6 n_atoms more energies (JOBT 23).
    mmax : int, optional
        Most neighbours of an atom; counted in the structure by default.
    threads : int
        OpenMP threads.

    Raises
    ------
    CalculatorSetupError
        On calculation, if the command or model is missing, the model damaged, or the structure not covered by it.
    CalculationFailed
        On calculation, if the run fails in any way, ending with exit code 0 included.
    """

    def __init__(
        self,
        model: str | Path = "silicon",
        *,
        profile: MaiseProfile | None = None,
        directory: str | Path = ".",
        core_repulsion: bool | float = True,
        shortest_distance: float = 1.0,
        exact_forces: bool = False,
        mmax: int | None = None,
        threads: int = 1,
    ) -> None:
        template = MaiseTemplate()
        if profile is None and template.name not in self.cfg.parser:
            profile = MaiseProfile()
        parameters = {
            "model": str(model),
            "core_repulsion": core_repulsion,
            "shortest_distance": shortest_distance,
            "exact_forces": exact_forces,
            "mmax": mmax,
            "threads": threads,
        }
        super().__init__(template=template, profile=profile, directory=directory, parameters=parameters)

    def relax(
        self,
        atoms: Atoms,
        *,
        mode: Mode = "full",
        scalar_pressure: float = 0.0,
        energy_tolerance: float = 1e-6,
        max_steps: int = 300,
        minimizer: str = "bfgs",
        must_converge: bool = True,
    ) -> MaiseRelaxation:
        """Relax a structure with MAISE's own minimiser.

        Parameters
        ----------
        atoms : Atoms
            Start; not modified.
        mode : {'full', 'ions', 'cell', 'zz'}
            Positions and cell, positions, cell at fixed scaled positions, or positions and the zz component.
        scalar_pressure : float
            eV/Å³.
        energy_tolerance : float
            Stop when the enthalpy of the cell changes by less in an iteration; eV.
        max_steps : int
            Most iterations.
        minimizer : {'bfgs', 'cg-pr', 'cg-fr', 'steepest-descent'}
            Of GSL, which MAISE uses.
        must_converge : bool
            False: return what was reached, with ``converged`` False.

        Raises
        ------
        CalculatorSetupError, CalculationFailed
            As for single points, and if the relaxation did not converge.
        ValueError
            If an option is none of those above.
        """
        for name, value, allowed in (("mode", mode, _MODES), ("minimizer", minimizer, _MINIMIZERS)):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}; it must be at least 1")
        if not atoms.pbc.all() and mode != "ions":
            raise ValueError(f"mode is {mode!r}; a cluster has no cell to relax, pass mode='ions'")
        options = {"RLXT": _MODES[mode], "MINT": _MINIMIZERS[minimizer], "MITR": max_steps, "ETOL": energy_tolerance}
        options["PGPA"] = float(scalar_pressure) / _GPA
        parameters = {**self.parameters, "exact_forces": False, "relaxation": options}
        self.atoms, self.results = None, {}
        self.directory.mkdir(exist_ok=True, parents=True)
        self.template.write_input(self.profile, self.directory, atoms, parameters, ())
        self.template.execute(self.directory, self.profile)
        _, progress = read_run(self.directory)
        changes = np.abs(np.diff(progress.enthalpies))
        converged = len(changes) > 0 and bool(changes[-1] < energy_tolerance)
        if not converged and must_converge:
            change = f"the last change of {changes[-1]:.3g} eV" if len(changes) else "it made no step"
            what = f"{self.directory}: not converged after {len(changes)} of {max_steps} iterations, {change}"
            remedy = f"energy_tolerance is {energy_tolerance:g} eV; raise it or max_steps, or pass must_converge=False"
            raise CalculationFailed(f"{what}; {remedy}")
        relaxed = relaxed_atoms(self.directory, atoms)
        relaxed.calc = self
        relaxed.get_forces()
        return MaiseRelaxation(relaxed, converged, len(changes), progress.enthalpies)
