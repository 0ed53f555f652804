"""Training: label checks, families, the objective, whitening, committees, the command line, the shipped model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.io.formats import open_with_compression
from ase.optimize import FIRE

from maise_bridge import MaiseCalculator, MaisePotential, read_model
from maise_bridge.__main__ import main
from maise_bridge.basis import standard_basis
from maise_bridge.committee import merge_models
from maise_bridge.dataset import LabelError, Labels, read_labels
from maise_bridge.evaluation import residuals, window_errors
from maise_bridge.families import Split, crystal_features, find_families, split_families
from maise_bridge.filters import Filters
from maise_bridge.network import Whitening
from maise_bridge.objective import ObjectiveSettings, compute_tables, make_batches, objective
from maise_bridge.preparation import prepare
from maise_bridge.recipe import Recipe
from maise_bridge.training import TrainingSettings, make_networks, train

PARENTS = ("diamond", "fcc", "bcc", "sc", "hcp")


def labelled(atoms: Atoms, tag: str, **info: float) -> Atoms:
    """Label with Lennard-Jones argon-like silicon: any smooth potential will do."""
    atoms.calc = LennardJones(sigma=2.1, epsilon=0.4, rc=6.0, smooth=True)
    results = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
    }
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info.update(config_type=tag, kspacing=0.25, **info)
    return atoms


def crystals(n_scan: int = 2, n_rattle: int = 2) -> list[Atoms]:
    rng = np.random.default_rng(1)
    rows = []
    for name in PARENTS:
        lattice = {"diamond": 5.4, "fcc": 3.9, "bcc": 3.1, "sc": 2.5, "hcp": 2.75}[name]
        parent = bulk("Si", name, a=lattice)
        for scale in np.linspace(0.95, 1.06, n_scan):
            scanned = parent.copy()
            scanned.set_cell(parent.cell * scale, scale_atoms=True)
            rows.append(labelled(scanned, f"ev_{name}"))
        for _ in range(n_rattle):
            rattled = parent.repeat((2, 1, 1))
            rattled.positions += rng.normal(0, 0.05, rattled.positions.shape)
            rows.append(labelled(rattled, f"rattle_{name}"))
    return rows


@pytest.fixture(scope="module")
def label_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("labels") / "labels.extxyz.gz"
    write(path, crystals(), format="extxyz")
    return str(path)


@pytest.fixture(scope="module")
def labels(label_file: str) -> Labels:
    return read_labels(label_file)


@pytest.fixture(scope="module")
def tables(labels: Labels) -> list[tuple[np.ndarray, np.ndarray]]:
    return compute_tables(labels, standard_basis(51))


SPLIT = Split(train=np.arange(16), validation=np.arange(16, 20), test=np.arange(0))
FAST = TrainingSettings(hidden=(4, 3), n_epochs=2, n_lbfgs=40, weight_decay=1e-4)


def test_labels_survive_the_file(labels: Labels) -> None:
    rows = crystals()
    assert len(labels) == len(rows) == 20
    assert labels.species == ("Si",)
    np.testing.assert_allclose(labels.energies, [atoms.get_potential_energy() for atoms in rows], atol=1e-6)
    np.testing.assert_allclose(labels.forces[3], rows[3].get_forces(), atol=1e-7)  # digits of the file
    np.testing.assert_allclose(labels.stresses[3], rows[3].get_stress(), atol=1e-7)
    assert labels.spacings.tolist() == [0.25] * 20


def test_label_files_are_checked(tmp_path) -> None:
    def written(*rows: Atoms) -> str:
        path = tmp_path / "bad.extxyz"
        write(path, list(rows), format="extxyz")
        return str(path)

    good = labelled(bulk("Si"), "ev_diamond")
    with pytest.raises(LabelError, match="no such file"):
        read_labels(tmp_path / "absent.extxyz")
    silent = bulk("Si")
    silent.calc = SinglePointCalculator(silent, energy=1.0)
    with pytest.raises(LabelError, match="structure 1: has no forces"):
        read_labels(written(good, silent))
    broken = bulk("Si")
    broken.calc = SinglePointCalculator(broken, energy=1.0, forces=np.full((2, 3), np.nan))
    with pytest.raises(LabelError, match="structure 1: forces not finite"):
        read_labels(written(good, broken))
    other = good.copy()
    other.info["kspacing"] = 0.25
    other.calc = SinglePointCalculator(other, energy=good.get_potential_energy() + 0.1, forces=good.get_forces())
    with pytest.raises(LabelError, match=r"structure 1: repeats .*structure 0 with an energy 0.0500 eV/atom away"):
        read_labels(written(good, other))
    hartree = bulk("Si", a=5.6)
    hartree.calc = SinglePointCalculator(hartree, energy=-580.0, forces=np.zeros((2, 3)))
    with pytest.raises(LabelError, match="units or references mixed"):
        read_labels(written(good, hartree))
    molecule = Atoms("Si2", positions=[[0, 0, 0], [0, 0, 2.3]])
    molecule.calc = SinglePointCalculator(molecule, energy=1.0, forces=np.zeros((2, 3)))
    path = written(molecule)
    with pytest.raises(LabelError, match="structure 0: not periodic"):
        read_labels(path)


def test_finer_k_spacing_replaces_a_coarser_label(tmp_path) -> None:
    coarse, fine = labelled(bulk("Si"), "a"), labelled(bulk("Si"), "a")
    coarse.info["kspacing"] = 0.3
    fine.calc.results["energy"] += 0.02
    write(tmp_path / "two.extxyz", [coarse, fine], format="extxyz")
    kept = read_labels(tmp_path / "two.extxyz")
    assert kept.spacings.tolist() == [0.25]


def test_a_crystal_labelled_again_in_another_cell_is_a_repeat(tmp_path, caplog) -> None:
    rng = np.random.default_rng(3)
    crystal, other = (bulk("Si", a=5.5, cubic=True) for _ in range(2))
    for atoms in (crystal, other):
        atoms.positions += rng.normal(scale=0.05, size=(8, 3))
    turned = make_supercell(crystal, [[1, 1, 0], [0, 1, 0], [1, 0, 1]])[[3, 1, 0, 2, 7, 5, 6, 4]]
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    turned.positions = turned.positions.round(6)  # as files do
    moved = crystal.copy()
    moved.positions[0, 0] += 1e-3
    coarse, fine = labelled(crystal, "a"), labelled(turned, "again")
    assert fine.get_potential_energy() == pytest.approx(coarse.get_potential_energy(), abs=1e-6)
    fine.info["kspacing"] = 0.14
    fine.calc.results["energy"] += 0.08  # by the mesh, 0.01 eV/atom
    rows = [coarse, labelled(other, "b"), fine, labelled(moved, "c")]
    write(tmp_path / "labels.extxyz", rows, format="extxyz")
    with caplog.at_level("WARNING"):
        kept = read_labels(tmp_path / "labels.extxyz")
    assert kept.tags == ("b", "again", "c")
    assert kept.removed["repeats"] == 1
    assert "structure 2: repeats" in caplog.text
    assert "structure 0 with an energy 0.0100 eV/atom away" in caplog.text
    fine.calc.results["energy"] += 0.8
    write(tmp_path / "labels.extxyz", rows, format="extxyz")
    with pytest.raises(LabelError, match=r"structure 2: repeats .*structure 0 with an energy 0.1100 eV/atom away"):
        read_labels(tmp_path / "labels.extxyz")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_packed_labels_are_those_of_the_plain_file(tmp_path, suffix) -> None:
    write(tmp_path / "labels.extxyz", crystals(), format="extxyz")
    with open_with_compression(f"{tmp_path}/labels.extxyz{suffix}", "wt") as packed:
        packed.write((tmp_path / "labels.extxyz").read_text())
    plain, unpacked = read_labels(tmp_path / "labels.extxyz"), read_labels(tmp_path / f"labels.extxyz{suffix}")
    np.testing.assert_array_equal(plain.energies, unpacked.energies)
    np.testing.assert_array_equal(np.concatenate(plain.forces), np.concatenate(unpacked.forces))
    assert plain.tags == unpacked.tags
    whole, cut = (f"{tmp_path}/{name}.extxyz{suffix}" for name in ("labels", "cut"))
    Path(cut).write_bytes(Path(whole).read_bytes()[:-20])
    with pytest.raises(LabelError, match=r"cut.extxyz\S*, structure 0: cannot be read"):
        read_labels(cut)


def test_split_never_separates_a_family(labels: Labels) -> None:
    features = crystal_features(labels.structures, standard_basis(51), labels.species)
    supercell = crystal_features([labels.structures[0].repeat(2)], standard_basis(51), labels.species)
    unit = crystal_features([labels.structures[0]], standard_basis(51), labels.species)
    # one crystal, one point, whatever the cell and the volume; rows 0 and 1 are a volume scan
    np.testing.assert_allclose(supercell, unit, rtol=1e-9)
    np.testing.assert_allclose(features[0], features[1], rtol=1e-9)
    anonymous = [tag if tag.startswith("ev") else "minimum_rattle" for tag in labels.tags]
    for tags in (labels.tags, anonymous):
        families = find_families(features, labels.n_atoms, tags)
        for seed in range(5):
            split = split_families(families, validation=0.2, test=0.2, largest=0.5, rng=np.random.default_rng(seed))
            parts = [set(families[part]) for part in (split.train, split.validation, split.test)]
            assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
            assert sum(len(part) for part in (split.train, split.validation, split.test)) == len(labels)
    assert [len(set(families[4 * k : 4 * k + 2])) for k in range(5)] == [1] * 5


def test_auxiliary_rows_train_and_change_no_split(labels: Labels) -> None:
    recipe = Recipe(fold=(1, 3))
    rows = np.array([*range(len(labels)), *range(5, 12)])  # the last are relatives of others
    both, added = labels.select(rows), np.arange(len(rows)) >= len(labels)
    split, own = recipe.split(replace(both, auxiliary=added)), recipe.split(labels)
    np.testing.assert_array_equal(split.train, [*own.train, *np.flatnonzero(added)])
    np.testing.assert_array_equal(split.validation, own.validation)
    np.testing.assert_array_equal(split.test, own.test)
    assert len(recipe.split(both).train) < len(split.train)


def test_auxiliary_rows_are_of_another_method(tmp_path) -> None:
    own, taught = (labelled(bulk("Si"), name) for name in ("ev_diamond", "taught_diamond"))
    taught.calc.results["energy"] += 0.1
    others = [labelled(bulk("Si", a=a), "taught_other") for a in (5.3, 5.6)]
    for atoms, calculator in ((own, "gpaw"), (taught, "teacher"), (others[0], "teacher"), (others[1], "teacher")):
        atoms.info["settings"] = {"calculator": calculator}
    write(tmp_path / "all.extxyz", [others[0], taught, own, others[1]], format="extxyz")
    with pytest.raises(LabelError, match="recorded settings differ"):
        read_labels(tmp_path / "all.extxyz")
    labels = read_labels(tmp_path / "all.extxyz", auxiliary=("taught_*",))
    assert labels.tags == ("taught_other", "ev_diamond", "taught_other")
    assert labels.auxiliary.tolist() == [True, False, True]
    with pytest.raises(LabelError, match=r"all 4 rows are auxiliary \(\*\); add the labels that they help"):
        read_labels(tmp_path / "all.extxyz", auxiliary=("*",))
    with pytest.raises(LabelError, match="all 3 rows are auxiliary"):
        read_labels(
            tmp_path / "all.extxyz", auxiliary=("taught_*",), filters=Filters(only=(("calculator", "teacher"),))
        )
    others[1].info["settings"] = {"calculator": "another"}
    write(tmp_path / "all.extxyz", [own, *others], format="extxyz")
    with pytest.raises(LabelError, match="recorded settings differ"):
        read_labels(tmp_path / "all.extxyz", auxiliary=("taught_*",))


def test_odd_structures_do_not_make_families_of_the_others() -> None:
    rng = np.random.default_rng(0)
    crystals = rng.normal(size=(50, 51))
    crystals = np.concatenate([crystals, crystals + 1e-3])  # each twice
    odd = 1e4 * rng.normal(size=(10, 51))
    families = find_families(np.concatenate([crystals, odd]), np.full(110, 2), [""] * 110)
    np.testing.assert_array_equal(families, [*range(50), *range(50), *range(50, 60)])


def test_kept_rows_are_not_held_out() -> None:
    families = np.repeat(np.arange(20), 2)
    keep = np.zeros(40, dtype=bool)
    keep[[0, 13, 20]] = True
    for seed in range(5):
        split = split_families(families, validation=0.3, test=0.3, keep=keep, rng=np.random.default_rng(seed))
        assert {0, 6, 10} <= set(families[split.train])


def test_folds_hold_out_every_family_once() -> None:
    families = np.repeat(np.arange(30), np.arange(30) % 4 + 1)
    keep = families == 7
    splits = [
        split_families(families, keep=keep, fold=(number, 5), rng=np.random.default_rng(3)) for number in range(5)
    ]
    held_out = np.concatenate([split.test for split in splits])
    assert sorted(held_out) == list(np.flatnonzero(~keep))
    assert max(len(split.test) for split in splits) - min(len(split.test) for split in splits) <= 4  # a family
    validation = np.concatenate([split.validation for split in splits])
    assert len(set(validation)) == len(validation)  # no row chooses the weights of two networks
    for split in splits:
        parts = [set(families[part]) for part in (split.train, split.validation, split.test)]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        assert 7 in parts[0]
    for fold in ((5, 5), (-1, 5), (0, 1)):
        with pytest.raises(ValueError, match="give at least two folds"):
            split_families(families, fold=fold, rng=np.random.default_rng(3))


def test_split_refuses_impossible_shares() -> None:
    with pytest.raises(ValueError, match="families are too few"):
        split_families(np.zeros(10, dtype=int), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="must be shares"):
        split_families(np.arange(10), validation=0.5, test=0.6, rng=np.random.default_rng(0))


def test_gradient_of_the_objective(labels: Labels) -> None:
    data = prepare(labels, SPLIT, like_maise=True)  # in float64
    networks = make_networks(data, FAST)
    batches, norm = make_batches(labels, data.train, ObjectiveSettings(), zeros=data.zeros, above=data.above)
    assert norm > 0
    loss = objective(networks, batches)
    loss.backward()
    step = 1e-5
    for parameter in networks.parameters():
        assert parameter.grad is not None
        place = np.unravel_index(int(parameter.grad.abs().argmax()), parameter.shape)
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter[place] += sign * step
                values.append(float(objective(networks, batches)))
                parameter[place] -= sign * step
        # central differences: error ~ step² of the third derivative
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(parameter.grad[place]), rel=1e-6)


def test_lowest_rows_are_allowed_smaller_errors(labels: Labels) -> None:
    above = labels.energies_per_atom - labels.energies_per_atom.min()
    usual = ObjectiveSettings().weigh(labels, above)
    tight = ObjectiveSettings(near_tolerance=0.2, near_window=0.5).weigh(labels, above)
    np.testing.assert_array_equal(tight.energies, usual.energies)
    for dE, few, many in zip(above, usual.derivatives, tight.derivatives, strict=True):
        np.testing.assert_allclose(many, few / min(0.2 + dE / 0.5, 1.0) ** 2, rtol=1e-12)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"near_tolerance is {share}; it must be positive and at most 1"):
            ObjectiveSettings(near_tolerance=share)


def test_folded_network_is_the_same_function(labels: Labels, tables) -> None:
    data = prepare(labels, SPLIT, tables=tables)
    networks, whitening = make_networks(data, FAST).double(), data.whitenings[0]
    model = networks.fold(data.whitenings, np.array([-5.0]), species=("Si",), basis=data.basis, info={})
    row = 3
    inputs = torch.as_tensor(whitening.inputs(tables[row][0]))[None]
    derivatives = torch.as_tensor(whitening.derivatives(tables[row][1].astype(float)))[None]
    energies, slopes = networks([inputs], [derivatives])
    found = MaisePotential(model, core_repulsion=False).evaluate([labels.structures[row]])[0]
    n_atoms = len(labels.structures[row])
    assert found.energy == pytest.approx(float(energies.detach()) - 5.0 * n_atoms, abs=1e-9)
    # the tables are float32
    np.testing.assert_allclose(-found.forces.ravel(), slopes[0, :-6].detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(found.virial, slopes[0, -6:].detach().numpy(), atol=1e-3)


def test_whitened_inputs_are_uncorrelated() -> None:
    rng = np.random.default_rng(0)
    raw = rng.random((200, 6)) @ rng.random((6, 6)) + 1.0
    whitening = Whitening.fit(raw, raw.max(0), floor=1e-12)
    np.testing.assert_allclose(np.cov(whitening.inputs(raw).T), np.eye(6), atol=1e-6)


def test_training_reduces_errors_and_repeats(labels: Labels, tables) -> None:
    data = prepare(labels, SPLIT, tables=tables)
    results = [train(data, FAST) for _ in range(2)]
    assert results[0].history[-1, 1] < 0.1 * results[0].history[0, 1]
    assert results[0].validation_loss == results[0].history[:, 2].min()
    assert results[0].model.unique_id == results[1].model.unique_id
    untrained = train(data, TrainingSettings(hidden=(4, 3), n_epochs=0, n_lbfgs=0)).model
    errors = [
        window_errors(residuals(MaisePotential(model, core_repulsion=False), labels), labels, lowest=-3.0)[-1]
        for model in (untrained, results[0].model)
    ]
    assert errors[1].energy < 0.5 * errors[0].energy
    assert errors[1].n_rows == 20


def test_without_early_stopping_the_last_weights_are_kept(labels: Labels, tables) -> None:
    whole = Split(np.union1d(SPLIT.train, SPLIT.validation), SPLIT.validation[:0], SPLIT.test)
    data = prepare(labels, whole, tables=tables)
    with pytest.raises(ValueError, match="early stopping needs validation rows"):
        train(data, FAST)
    settings = replace(FAST, early_stopping=False)
    found, longer = train(data, settings), train(data, replace(settings, n_lbfgs=60))
    assert np.isnan(found.history[:, 2]).all()
    assert np.isnan(found.validation_loss)
    np.testing.assert_array_equal(longer.history[:-1, :2], found.history[:, :2])
    assert longer.history[-1, 1] < found.history[-1, 1]
    assert longer.model.unique_id != found.model.unique_id
    watched = prepare(labels, SPLIT, tables=tables)  # rows that only watch change nothing
    impatient = replace(settings, patience=1, n_lbfgs=200)
    assert train(watched, impatient).history[-1, 0] == 202


def test_merged_model_is_the_mean(labels: Labels, tables) -> None:
    data = prepare(labels, SPLIT, tables=tables)
    settings = [TrainingSettings(hidden=(4, 3), n_epochs=1, n_lbfgs=0, seed=seed) for seed in range(3)]
    models = [train(data, setting).model for setting in settings]
    merged = merge_models(models)
    assert merged.architecture == (51, 12, 9, 1)
    members = [MaisePotential(model).evaluate([labels.structures[5]])[0] for model in models]
    found = MaisePotential(merged).evaluate([labels.structures[5]])[0]
    assert found.energy == pytest.approx(np.mean([member.energy for member in members]), abs=1e-10)
    np.testing.assert_allclose(found.forces, np.mean([member.forces for member in members], axis=0), atol=1e-10)
    with pytest.raises(ValueError, match="no models"):
        merge_models([])
    shallow = prepare(labels, SPLIT, tables=tables, basis=standard_basis(51), whitening_floor=1e-3)
    assert merge_models([models[0], train(shallow, settings[0]).model]).architecture == (51, 8, 6, 1)


def test_a_fit_goes_on_with_the_same_bits(labels: Labels, tables) -> None:
    data = prepare(labels, SPLIT, tables=tables)
    states = []
    whole = train(data, FAST, save=lambda state: states.append(io.BytesIO()) or torch.save(state, states[-1]))
    assert [torch.load(state.seek(0) or state)["stage"] for state in states] == [*2 * ["adam"], *2 * ["lbfgs"], "done"]
    for state in states:
        state.seek(0)
        again = train(data, FAST, resume=torch.load(state, weights_only=True))
        assert again.model.unique_id == whole.model.unique_id
        np.testing.assert_array_equal(again.history, whole.history)


def test_a_killed_command_goes_on(label_file: str, tmp_path) -> None:
    command = ["train", label_file, "--hidden", "3", "2", "--epochs", "1", "--iterations", "260"]
    assert main([*command, "--out", str(tmp_path / "whole.model")]) == 0
    out = tmp_path / "killed.model"
    checkpoint = tmp_path / "killed.model.checkpoint"
    process = subprocess.Popen(
        [sys.executable, "-m", "maise_bridge", *command, "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "step 101" in line:
            process.kill()
            break
    process.communicate()
    assert checkpoint.exists()
    assert not out.exists()
    assert main([*command, "--out", str(out), "--seed", "1"]) == 2  # another fit
    assert main([*command, "--out", str(out)]) == 0
    assert not checkpoint.exists()
    assert out.read_bytes() == (tmp_path / "whole.model").read_bytes()


def test_command_line(label_file: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "si.model"
    command = ["train", label_file, "--out", str(out), "--hidden", "3", "2", "--epochs", "1", "--iterations", "20"]
    assert main([*command, "--members", "2", "--tag-weight", "ev_diamond=3"]) == 0
    model, card = read_model(out), json.loads((tmp_path / "si.model.json").read_text())
    assert model.architecture == (51, 6, 4, 1)
    assert len(card["members"]) == 2
    assert card["split"]["test"]
    capsys.readouterr()
    assert main(["evaluate", str(out), label_file]) == 0
    assert "20 structures" in capsys.readouterr().out
    assert main(["info", str(out)]) == 0
    assert "51-6-4-1" in capsys.readouterr().out
    before = out.read_bytes()
    assert main(command) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "nowhere"), label_file]) == 2
    assert main(["evaluate", str(out), str(tmp_path / "nowhere.extxyz")]) == 2
    assert main([*command, "--overwrite", "--tag-weight", "dia"]) == 2
    assert main([*command, "--overwrite", "--members", "0"]) == 2
    assert main(["train", label_file, "--out", str(tmp_path / "nowhere" / "si.model")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert "there is no folder" in errors[-1]
    assert all(line.startswith("error: ") for line in errors)
    assert out.read_bytes() == before


def test_the_command_without_early_stopping(label_file: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plots = tmp_path / "si.model", tmp_path / "plots"
    command = ["train", label_file, "--out", str(out), "--hidden", "3", "2", "--epochs", "1", "--iterations", "40"]
    assert main([*command, "--no-early-stopping", "--plots", str(plots)]) == 0
    assert "validation" not in "".join(capsys.readouterr())
    card = json.loads((tmp_path / "si.model.json").read_text())
    assert card["split"]["validation"] == []
    assert card["members"][0]["validation_loss"] is None
    assert card["errors"]["train"][-1]["n_rows"] + len(card["split"]["test"]) == 20
    assert (plots / "history.png").stat().st_size > 0


def test_functions_of_a_basis_file(label_file: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "basis", tmp_path / "si.model"
    text = standard_basis(30).text.replace("Rs   1   0.0000", "Rs   2   0.0000   3.8000")
    file.write_text(text.replace("  8   2   0   0 ", "  8   2   0   1 "))
    command = ["train", label_file, "--out", str(out), "--basis", str(file), "--epochs", "1", "--iterations", "20"]
    assert main([*command, "--hidden", "3", "2"]) == 0
    model = read_model(out)
    assert model.basis.text == file.read_text()
    assert model.basis.radial[7, 1] == pytest.approx(3.8 * 0.529177249, abs=1e-6)
    assert main([*command, "--overwrite", "--freeze", str(out), str(out)]) == 2
    assert "the models to keep have theirs" in capsys.readouterr().err
    file.write_text(text.replace("  8   2   0   0 ", "  8   2   0   2 "))
    assert main([*command, "--overwrite"]) == 2
    assert f"{file}, line " in capsys.readouterr().err


def relaxed(atoms: Atoms, calc: MaiseCalculator) -> float:
    atoms.calc = calc
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=150)
    return atoms.get_potential_energy() / len(atoms)


def wurtzite_silicon() -> Atoms:
    a, c, u = 3.85, 6.37, 0.0622
    places = [[1 / 3, 2 / 3, u], [2 / 3, 1 / 3, u + 0.5], [1 / 3, 2 / 3, 0.5 - u], [2 / 3, 1 / 3, -u]]
    return Atoms("Si4", scaled_positions=places, cell=[a, a, c, 90, 90, 120], pbc=True)


def bc8_silicon() -> Atoms:
    x, edge = 0.1003, 6.66
    corners = [[x, x, x], [0.5 - x, -x, 0.5 + x], [-x, 0.5 + x, 0.5 - x], [0.5 + x, 0.5 - x, -x]]
    places = [[s * y for y in corner] for corner in corners for s in (1, -1)]
    cell = 0.5 * edge * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    return Atoms("Si8", positions=np.array(places) * edge, cell=cell, pbc=True)


def test_shipped_silicon_prefers_diamond() -> None:
    calc = MaiseCalculator("silicon")
    diamond = bulk("Si", a=5.47)
    tin = Atoms("Si2", scaled_positions=[[0, 0, 0], [0.25, 0.75, 0.5]], cell=[3.6] * 3, pbc=True)
    tin.set_cell(0.5 * np.array([[-4.8, 4.8, 2.65], [4.8, -4.8, 2.65], [4.8, 4.8, -2.65]]), scale_atoms=True)
    lowest = relaxed(diamond, calc)
    assert (4 * diamond.get_volume()) ** (1 / 3) == pytest.approx(5.475, rel=0.005)  # PBE 5.475 Å
    above = [1e3 * (relaxed(atoms, calc) - lowest) for atoms in (wurtzite_silicon(), bc8_silicon(), tin)]
    np.testing.assert_allclose(above, [11, 158, 292], atol=10)  # PBE, meV/atom


def test_shipped_silicon_forces_are_derivatives() -> None:
    atoms = bulk("Si", a=5.4, cubic=True)
    atoms.rattle(0.15, seed=2)
    atoms.calc = MaiseCalculator("silicon")
    forces, step, energies = atoms.get_forces(), 1e-4, []
    for sign in (1, -1):
        atoms.positions[3, 1] += sign * step
        energies.append(atoms.get_potential_energy())
        atoms.positions[3, 1] -= sign * step
    assert -(energies[0] - energies[1]) / (2 * step) == pytest.approx(forces[3, 1], abs=1e-6)
