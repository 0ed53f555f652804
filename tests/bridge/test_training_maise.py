"""Training as MAISE does: its trees and filters, its objective, stratified fits of binaries."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from maise_bridge import MaiseCalculator, MaisePotential, read_model
from maise_bridge.__main__ import main
from maise_bridge.basis import standard_basis
from maise_bridge.dataset import LabelError, Labels, read_labels
from maise_bridge.depo import read_depo, write_depo
from maise_bridge.families import Split
from maise_bridge.filters import Filters
from maise_bridge.maise_data import number_structures
from maise_bridge.model_file import MaiseModel, read_network
from maise_bridge.objective import MaiseObjective, make_batches, objective
from maise_bridge.preparation import prepare
from maise_bridge.stratified import freeze_models
from maise_bridge.training import TrainingSettings, make_networks, train

REFERENCE = Path(__file__).parents[3] / "shared" / "maise_reference"
SPLIT = Split(train=np.arange(18), validation=np.arange(18, 24), test=np.arange(0))
TINY = TrainingSettings(hidden=(3, 2), n_epochs=2, n_lbfgs=60, weight_decay=1e-6)


def labelled(atoms: Atoms, tag: str) -> Atoms:
    atoms.calc = EMT()
    values = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
    atoms.calc = SinglePointCalculator(atoms, **values)
    atoms.info["config_type"] = tag
    return atoms


def alloys(formulas: tuple[str, ...], n: int, seed: int = 0) -> list[Atoms]:
    """Strained, displaced cells of four atoms on fcc sites."""
    rng, rows = np.random.default_rng(seed), []
    for formula in formulas:
        for number in range(n):
            atoms = bulk("Cu", cubic=True, a=3.6 + 0.5 * rng.random())
            atoms.symbols = formula
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * rng.normal(size=(3, 3))), scale_atoms=True)
            atoms.positions += 0.08 * rng.normal(size=(4, 3))
            rows.append(labelled(atoms, f"set{number % 2}"))
    return rows


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gold") / "gold.extxyz"
    write(path, alloys(("Au4",), 12))
    return path


def test_a_tree_of_maise_survives_writing_and_reading(gold: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.extxyz"
    write(mixed, alloys(("Cu2Au2", "CuAuCuAu"), 3))
    labels = read_labels(mixed)
    assert write_depo(labels, tmp_path / "depo") == {"set0": 4, "set1": 2}
    back = read_labels(tmp_path / "depo")
    assert sorted(back.tags) == sorted(labels.tags)
    order = np.argsort(back.energies), np.argsort(labels.energies)
    for i, k in zip(*order, strict=True):
        assert back.energies[i] == pytest.approx(labels.energies[k], abs=1e-9)
        np.testing.assert_allclose(back.stresses[i], labels.stresses[k], atol=1e-9)
        groups = labels.structures[k].numbers.argsort(kind="stable")  # a POSCAR holds one species after the other
        np.testing.assert_allclose(back.forces[i], labels.forces[k][groups], atol=1e-9)
    with pytest.raises(ValueError, match="is not empty"):
        write_depo(labels, tmp_path / "depo")


def test_damaged_trees_are_refused_by_file_and_line(gold: Path, tmp_path: Path) -> None:
    write_depo(read_labels(gold), tmp_path)
    data = tmp_path / "set0" / "000000" / "dat.dat"
    text = data.read_text()
    data.write_text(text.replace("POSITION", "NOTHING"))
    with pytest.raises(LabelError, match=r"dat\.dat, line 3: expected"):
        read_labels(tmp_path)
    data.unlink()
    with pytest.raises(LabelError, match="no such file; each POSCAR"):
        read_labels(tmp_path)
    data.write_text(text)
    (tmp_path / "set1" / "tag").write_text("7\n")
    with pytest.raises(LabelError, match=r"tag: use 7.*expected 1 to 4"):
        read_labels(tmp_path)


def test_tag_files_and_filters_choose_rows(gold: Path, tmp_path: Path) -> None:
    write_depo(read_labels(gold), tmp_path)
    assert len(read_labels(tmp_path)) == 12
    half = read_labels(tmp_path, filters=Filters(ecut=0.5))
    assert half.removed["ecut"] == 6
    for name in ("set0", "set1"):  # of each category the lower half
        folder = [atoms.get_potential_energy() for path, atoms in read_depo(tmp_path) if f"/{name}/" in path]
        kept = [energy for energy, tag in zip(half.energies, half.tags, strict=True) if tag == name]
        np.testing.assert_allclose(sorted(kept), sorted(folder)[:3], atol=1e-9)
    (tmp_path / "set0" / "tag").write_text("4\n")
    (tmp_path / "set1" / "tag").write_text("-3\n")  # for test only, filters do not apply
    chosen = read_labels(tmp_path, filters=Filters(ecut=0.5))
    assert set(chosen.tags) == {"set1"}
    assert len(chosen) == 6
    assert chosen.uses.tolist() == 6 * [3]
    forces = read_labels(gold, filters=Filters(fmax=1.0)).forces
    assert forces
    assert max(np.abs(part).max() for part in forces) <= 1.0
    with pytest.raises(LabelError, match=r"filters leave none of 12 rows \(volume 12\); widen them"):
        read_labels(gold, filters=Filters(vmax=1.0))


def test_rows_of_two_methods_are_refused_or_chosen(tmp_path: Path) -> None:
    rows = alloys(("Au4",), 4)
    for number, atoms in enumerate(rows):
        atoms.info["settings"] = {"calculator": "gpaw", "ecut": 260.0 if number else 340.0}
    write(tmp_path / "two.extxyz", rows)
    with pytest.raises(LabelError, match=r"structure 0: recorded settings differ \(ecut 340 against 260; 1 and 3 rows"):
        read_labels(tmp_path / "two.extxyz")
    assert len(read_labels(tmp_path / "two.extxyz", filters=Filters(only=(("ecut", "260"),)))) == 3


def binary(tmp_path: Path) -> Labels:
    path = tmp_path / "binary.extxyz"
    write(path, alloys(("Cu2Au2", "Cu3Au", "CuAu3"), 8))
    return read_labels(path)


def elements(tmp_path: Path) -> list[Path]:
    """Models of copper and gold, of three and two neurons."""
    models = []
    for symbol in ("Cu", "Au"):
        path = tmp_path / f"{symbol}.extxyz"
        write(path, alloys((f"{symbol}4",), 12))
        out = tmp_path / f"{symbol}.model"
        command = ["train", str(path), "--out", str(out), "--hidden", "3", "2", "--epochs", "2", "--iterations", "60"]
        assert main([*command, "--maise-objective", "--seed", "3"]) == 0
        models.append(out)
    return models


@pytest.fixture(scope="module")
def stratified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the labels and the model of an alloy, and the models of its elements that it was built on."""
    folder = tmp_path_factory.mktemp("stratified")
    models = elements(folder)
    binary(folder)
    command = ["train", str(folder / "binary.extxyz"), "--out", str(folder / "CuAu.model"), "--freeze"]
    assert main([*command, *map(str, models), "--epochs", "2", "--iterations", "60", "--seed", "3"]) == 0
    return folder


def test_stratified_training_keeps_the_elements(stratified: Path) -> None:
    models, out = [stratified / "Cu.model", stratified / "Au.model"], stratified / "CuAu.model"
    labels = read_labels(stratified / "binary.extxyz")
    model = read_model(out)
    assert model.species == ("Cu", "Au")
    for element in models:
        pure = bulk(element.stem, a=3.9)
        numbers = []
        for path in (element, out):
            pure.calc = MaiseCalculator(str(path))
            numbers.append([pure.get_potential_energy(), *pure.get_stress()])
        np.testing.assert_allclose(numbers[0], numbers[1], rtol=0, atol=1e-14)  # sums over more inputs, all zero
    data = prepare(labels, SPLIT, frozen=freeze_models([read_model(path) for path in models]))
    history = train(data, TINY).history
    assert history[-1, 1] < 0.5 * history[0, 1]
    with pytest.raises(ValueError, match="give two of one element each, or the three binaries"):
        freeze_models([model])


@pytest.mark.maise
def test_maise_computes_the_same_from_a_stratified_model(stratified: Path, real_maise) -> None:
    model, atoms = read_model(stratified / "CuAu.model"), alloys(("Cu3Au",), 1, seed=5)[0]
    atoms.positions += 0.8  # no atom on a face of the cell
    expected = MaisePotential(model).evaluate([atoms])[0]
    energy, forces = real_maise(model, atoms)
    assert np.abs(forces).max() > 0.01
    assert energy == pytest.approx(expected.energy, rel=0, abs=1e-11)
    np.testing.assert_allclose(forces, expected.forces, rtol=0, atol=1e-10)  # printed with 12 decimals


def test_several_species_train_at_once(tmp_path: Path) -> None:
    labels = binary(tmp_path)
    history = train(prepare(labels, SPLIT), TINY).history
    assert history[-1, 1] < 0.5 * history[0, 1]
    with pytest.raises(ValueError, match="the training rows hold 0 atoms of Ag"):
        prepare(labels, SPLIT, species=("Cu", "Au", "Ag"))


def test_weights_of_maise_need_its_objective(gold: Path, tmp_path: Path, capsys) -> None:
    command = ["train", str(gold), "--out", str(tmp_path / "out")]
    assert main([*command, "--force-weight", "0.1"]) == 2
    assert "add --maise-objective" in capsys.readouterr().err
    assert main([*command, "--maise-objective"]) == 2
    assert "positive seed" in capsys.readouterr().err
    assert main([*command, "--only", "ecut"]) == 2
    assert "give KEY=PATTERN" in capsys.readouterr().err


def test_pictures_and_trees_are_written(gold: Path, tmp_path: Path, capsys) -> None:
    out, plots, depo = tmp_path / "out.model", tmp_path / "plots", tmp_path / "depo"
    command = ["train", str(gold), "--out", str(out), "--plots", str(plots), "--write-depo", str(depo)]
    assert main([*command, "--hidden", "3", "2", "--epochs", "1", "--iterations", "20", "--emax", "3"]) == 0
    assert {path.name for path in plots.iterdir()} == {"history.png", "parity.png"}
    card, rows = json.loads(Path(f"{out}.json").read_text()), len(list(depo.rglob("POSCAR.0")))
    assert rows == 12 - sum(card["removed"].values())
    assert read(next(depo.rglob("POSCAR.0")), format="vasp").get_chemical_formula() == "Au4"


GOLDEN = REFERENCE / "training_golden.json"
needs_reference = pytest.mark.skipif(not GOLDEN.exists(), reason="no ../shared/maise_reference")


class Golden:
    """A fit of MAISE, and ours from the same rows in the same order, with the same weights of errors and start."""

    def __init__(self, name: str, data: Path, listed: Path, ecut: float, **options) -> None:
        self.wanted = wanted = json.loads(GOLDEN.read_text())[name]
        labels = read_labels(data, filters=Filters(ecut=ecut, emax=5, fmax=50))
        order = np.argsort(number_structures(labels.uses, wanted["seed"]))
        names = [line.split()[1] for line in listed.read_text().splitlines()]
        assert all(labels.sources[row].endswith(name[6:] + "POSCAR.0") for row, name in zip(order, names, strict=True))
        labels = labels.select(order)
        labels = replace(labels, energies=np.round(labels.energies, 6))  # as parsed files hold them
        n, total = wanted["ntrain"], wanted["ntrain"] + wanted["ntest"]
        split = Split(np.arange(n), np.arange(n, total), np.arange(0))
        self.data = prepare(labels.select(range(total)), split, like_maise=True, **options)
        own = MaiseObjective(force_weight=wanted["wfrc"], force_fraction=0.5, seed=wanted["seed"])
        settings = TrainingSettings(hidden=(10, 10), weight_decay=wanted["lreg"], objective=own, seed=wanted["seed"])
        self.networks = make_networks(self.data, settings)
        self.batches, self.norm = make_batches(
            self.data.labels, self.data.train, own, zeros=self.data.zeros, above=self.data.above
        )

    def value(self) -> float:
        with torch.no_grad():
            errors = objective(self.networks, self.batches) / self.norm
            return float(errors + self.wanted["lreg"] * self.networks.penalty(biases=True))

    def check(self, model: MaiseModel) -> None:
        """Compare the objective at the start, and at the weights where MAISE ended."""
        assert self.value() == pytest.approx(float(self.wanted["objective_initial_maise"]), abs=1e-6)
        for whitening, maximum in zip(self.data.whitenings, model.maximum, strict=True):
            np.testing.assert_allclose(whitening.maximum, maximum, rtol=1e-9)
        n_kept = 0 if self.data.frozen is None else self.data.frozen.n_first  # inputs of the elements' networks
        self.networks.set_weights([model.weights[0][:, :, n_kept:], *model.weights[1:]], model.biases)
        assert self.value() ** 0.5 == pytest.approx(float(self.wanted["sqrt_objective_final_maise"]), abs=1e-8)


@needs_reference
def test_objective_is_that_of_maise() -> None:
    folder = REFERENCE / "training_cu_synthetic"
    golden = Golden("training_cu_synthetic", folder / "DATA", folder / "PARS" / "index.dat", 0.95)
    golden.check(read_model(folder / "NNET" / "model"))


@needs_reference
@pytest.mark.parametrize("fit", ["full", "strat"])
def test_objective_of_a_binary_is_that_of_maise(fit: str, tmp_path: Path) -> None:
    folder = REFERENCE / "training_cuag_dft"
    with tarfile.open(folder / "DATA.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    options = {"basis": standard_basis(30), "species": ("Cu", "Ag")}
    if fit == "strat":
        files = [folder / "NNET_strat" / f"{symbol}.dat" for symbol in ("Cu", "Ag")]
        options = {"frozen": freeze_models([read_network(path) for path in files])}
    name = {"full": "training_cuag_dft_full", "strat": "training_cuag_dft_stratified"}[fit]
    golden = Golden(name, tmp_path / "DATA", folder / "PARS" / "index.dat", 0.9, **options)
    golden.check(read_model(folder / f"NNET_{fit}" / "model"))
