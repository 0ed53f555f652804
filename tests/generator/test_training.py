"""Training on crystals: file, card, exclusion, collapse; and the shipped weights."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write

import ase_hvae.data
from ase_hvae import training
from ase_hvae.data import load_known
from ase_hvae.dataset import Augmentation, CrystalDataset
from ase_hvae.errors import ModelError, StructureError
from ase_hvae.hvae import HVAE, load_model
from ase_hvae.rdf import RDFSettings
from ase_hvae.replicas import decode
from ase_hvae.sampling import sample_grid
from ase_hvae.training import Recipe, assess, novelty, train

QUICK = Recipe(
    n_leapfrog=1,
    hidden=(16,),
    epochs=15,
    batch_size=16,
    learning_rate=1e-2,
    noise_floor=0.2,
    held_out_fraction=0.25,
    rdf=RDFSettings(rmax=5.0, n_bins=50, sigma=0.1),
    augmentation=Augmentation(n_copies=16),
)


@pytest.fixture(scope="module")
def result(crystals, tmp_path_factory):
    return train(crystals, tmp_path_factory.mktemp("train") / "model.safetensors", recipe=QUICK, seed=3)


def test_card_says_how_the_weights_came_about(result, crystals):
    card = json.loads(result.path.with_suffix(".json").read_text())
    assert card["seed"] == 3
    assert card["species"] == ["Si"]
    assert RDFSettings(**card["rdf"]) == QUICK.rdf
    assert card["sha256"] == hashlib.sha256(result.path.read_bytes()).hexdigest()
    assert card["data_sha256"] == CrystalDataset(crystals, QUICK.rdf).sha256
    assert card["recipe"]["epochs"] == 15
    assert [entry["name"] for entry in card["crystals"]] == list(result.names) == ["diamond", "fcc", "bcc", "sc"]
    assert np.shape([entry["mean"] for entry in card["crystals"]]) == (4, 2)
    assert len(card["held_out"]) == 1
    assert np.isfinite([result.held_out_elbo, result.replica_spread, result.null_correlation]).all()
    assert result.reconstruction_correlation > result.null_correlation
    assert set(card["versions"]) >= {"torch", "ase_hvae"}
    assert card["energy_error"] == result.history.energy_error[-1] > 0
    assert card["active_units"] == {"n": sum(kl > 0.1 for kl in card["kl_per_dimension"]), "threshold": 0.1}
    assert card["composition"] == "Si"


def test_distance_to_what_was_trained_on_is_reported(result, crystals):
    """Of rows known by heart, and of the model as it stands."""
    rows = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    known = novelty(np.array([[1.0, 0, 0, 0], [0, 0, 1, 0]]), rows)
    assert known["quantiles"] == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3])
    assert (known["mean"], known["between_crystals"]) == pytest.approx((2 / 3, 4 / 3))
    replicas = np.array([replica.rdf for replica in decode(result.model, sample_grid())])
    rdfs = CrystalDataset(crystals, QUICK.rdf).rdfs
    nearest = [1 - max(np.corrcoef(replica, rdf)[0, 1] for rdf in rdfs) for replica in replicas[::50]]
    assert min(nearest) > 0
    assert result.replica_novelty == pytest.approx(np.mean(nearest), rel=0.5)  # of five of them
    assert "to the nearest training crystal" in str(result)


def test_more_latent_dimensions_take_no_larger_grid(crystals):
    model = HVAE(51, latent_dim=5, hidden=(8,))
    quality = assess(model, CrystalDataset(crystals, QUICK.rdf))
    assert len(quality["kl_per_dimension"]) == 5
    assert len(quality["crystals"][0]["mean"]) == 5
    assert np.isfinite(quality["replica_spread"])  # 15^5 replicas would not fit into memory


def test_copies_of_the_training_crystals_are_warned_of(result, crystals, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(training, "MEMORISED_DISTANCE", 1.0)
    train(crystals, tmp_path / "model.safetensors", recipe=QUICK, seed=3, epochs=8)
    assert "the replicas repeat the training crystals" in caplog.text


def test_training_repeats_bit_for_bit(result, crystals, tmp_path):
    again = train(crystals, tmp_path / "again.safetensors", recipe=QUICK, seed=3)
    assert again.path.read_bytes() == result.path.read_bytes()
    other = train(crystals, tmp_path / "other.safetensors", recipe=QUICK, seed=4, epochs=1)
    assert other.path.read_bytes() != result.path.read_bytes()


def test_excluded_files_are_left_out(crystals, tmp_path):
    write(tmp_path / "all.extxyz", crystals)
    write(tmp_path / "held_out.cif", crystals[0])
    result = train(
        tmp_path / "all.extxyz",
        tmp_path / "model.safetensors",
        exclude=[tmp_path / "held_out.cif"],
        recipe=QUICK,
        epochs=2,
        held_out_fraction=0.15,  # of three crystals: none
    )
    assert result.names == ("fcc", "bcc", "sc")
    assert result.excluded == ("diamond",)
    assert "left out: diamond" in str(result)
    assert result.held_out_elbo is None


def test_collapse_and_bad_input_write_nothing(crystals, tmp_path):
    out = tmp_path / "model.safetensors"
    with pytest.raises(ModelError, match="latent space collapsed"):
        train(crystals, out, recipe=QUICK, noise_floor=100.0, held_out_fraction=0)
    with pytest.raises(ModelError, match="0 of 1 structures are left"):
        train(crystals[:1], out, exclude=crystals[:1], recipe=QUICK)
    with pytest.raises(StructureError, match=r"nowhere\.cif"):
        train(tmp_path / "nowhere.cif", out, recipe=QUICK)
    with pytest.raises(TypeError, match="nonsense"):
        train(crystals, out, recipe=QUICK, nonsense=1)
    assert not list(tmp_path.iterdir())


# -- the shipped weights ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return load_model()


def test_shipped_weights_are_those_of_the_default_recipe_and_table(shipped):
    known = CrystalDataset(load_known("Si"), Recipe().rdf)
    assert shipped.card["recipe"] == json.loads(json.dumps(asdict(Recipe())))
    assert shipped.card["data_sha256"] == known.sha256
    notes = (Path(ase_hvae.data.__file__).parent / "WEIGHTS.md").read_text()
    assert shipped.card["sha256"] in notes
    assert known.sha256 in notes


def test_shipped_model_gives_known_crystals_back(shipped):
    known = CrystalDataset(load_known("Si"), RDFSettings(**shipped.card["rdf"]))
    mean, _ = shipped.encode(torch.from_numpy(known.features))
    rdfs, volumes = shipped.decode(mean)
    pearson = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(rdfs.double().numpy(), known.rdfs, strict=True)])
    assert pearson[known.names.index("diamond")] > 0.95
    assert pearson.mean() > 0.95
    assert np.abs(volumes.numpy() / np.exp(known.features[:, -1]) - 1).max() < 0.3
    assert min(shipped.card["kl_per_dimension"]) > 1


def test_shipped_replicas_differ_and_are_physical(shipped):
    replicas = decode(shipped, sample_grid())
    volumes = np.array([replica.volume_per_atom for replica in replicas])
    assert ((volumes > 10) & (volumes < 30)).all()
    distance = 1 - np.corrcoef([replica.rdf for replica in replicas])
    assert distance[np.triu_indices(225, k=1)].mean() > 0.2  # Lee & Chang 2021: 0.200
