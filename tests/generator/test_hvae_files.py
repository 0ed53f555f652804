"""Fitting an HVAE to features and writing and reading its files."""

import json

import numpy as np
import pytest
import torch

from ase_hvae.errors import ModelError
from ase_hvae.hvae import HVAE, fit, load_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(**options):
    return HVAE(6, hidden=(8,), rng=generator(), **options).double()


@pytest.fixture(scope="module")
def ring():
    """Points on a ring, embedded in six features."""
    angle = torch.linspace(0, 2 * torch.pi, 129, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    return circle @ torch.randn(2, 6, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("n_leapfrog", [0, 2])
def test_training_lowers_the_loss(ring, optimizer, n_leapfrog):
    model = make_model(n_leapfrog=n_leapfrog)
    seen = []
    history = fit(
        model,
        ring,
        rng=generator(2),
        epochs=30,
        learning_rate=1e-2,
        optimizer=optimizer,
        callback=lambda epoch, loss: seen.append((epoch, loss)),
    )
    assert seen == list(enumerate(history.loss))
    assert history.loss[-1] < history.loss[0] - 2
    assert history.kl.shape == (30, 2)
    assert history.energy_error.shape == (30,)
    assert ((history.energy_error > 0) == (n_leapfrog > 0)).all()
    assert history.energy_error.max() < 1  # steps of 0.25 encoder widths are short
    assert history.kl[-1].max() > 0.1
    assert np.isfinite(history.loss).all()
    assert (np.diff(history.seconds) > 0).all()


def test_a_hundred_seeded_trainings_stay_finite(ring):
    """All kinds of models and optimizers in turn; no minibatch is skipped."""
    for seed in range(100):
        model = HVAE(
            6,
            hidden=(8,),
            n_leapfrog=(1, 3, 0, 10)[seed % 4],
            tempering=("none", "fixed", "free")[seed % 3],
            shared_step_size=seed % 5 == 0,
            rng=generator(seed),
        )
        optimizer, rate = (("adam", 1e-2), ("sgd", 1e-3))[seed % 2]
        history = fit(model, ring, rng=generator(seed), epochs=3, learning_rate=rate, optimizer=optimizer)
        assert history.n_skipped == 0, seed
        assert np.isfinite(np.column_stack([history.loss, history.energy_error, history.kl])).all(), seed
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters()), seed


def test_same_seed_gives_the_same_weights_bit_for_bit(ring):
    models = []
    for _ in range(2):
        models.append(make_model(tempering="free"))
        fit(models[-1], ring, rng=generator(3), epochs=3)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("shared", [False, True])
def test_runaway_trajectories_shorten_the_steps(ring, caplog, shared):
    """Steps ten times the encoder's width are unstable; they are halved until the trajectories come back."""
    model = make_model(n_leapfrog=5, step_size=10.0, max_step_size=20.0, noise_floor=0.02, shared_step_size=shared)
    with torch.no_grad():
        model.raw_noise -= 6  # a sharp likelihood
    with caplog.at_level("INFO"):
        history = fit(model, ring, rng=generator(3), epochs=10, batch_size=8, learning_rate=1e-3)
    assert 3 <= history.n_skipped <= 8
    assert caplog.text.count("step sizes halved") == history.n_skipped
    assert 20 * torch.sigmoid(model.step_size_logits).max() < 3
    assert history.loss[-1] < history.loss[0]
    assert history.energy_error.max() <= 1000


def test_halved_steps_are_half_as_long():
    model = make_model(n_leapfrog=2)
    before = model.step_sizes(torch.zeros(1, 2).double())
    model.halve_step_sizes()
    torch.testing.assert_close(model.step_sizes(torch.zeros(1, 2).double()), before / 2)


def test_runaway_training_is_refused(ring):
    with pytest.raises(ModelError, match=r"training diverged.*lower the learning rate"):
        fit(make_model(), ring, rng=generator(), epochs=20, learning_rate=1e200, optimizer="sgd")


def test_rising_loss_is_reported(ring, caplog):
    fit(make_model(n_leapfrog=0), ring, rng=generator(), epochs=3, learning_rate=1e4, optimizer="sgd")
    assert "the loss rose from" in caplog.text


def test_nonsense_training_options_are_refused(ring):
    with pytest.raises(ValueError, match="optimizer is 'lbfgs'"):
        fit(make_model(), ring, rng=generator(), optimizer="lbfgs")
    with pytest.raises(ValueError, match="epochs=0"):
        fit(make_model(), ring, rng=generator(), epochs=0)
    with pytest.raises(ModelError, match="features are not finite"):
        fit(make_model(), ring * torch.nan, rng=generator())


@pytest.mark.parametrize("tempering", ["none", "fixed", "free"])
def test_files_give_the_same_model_back(tmp_path, tempering):
    model = make_model(tempering=tempering, n_leapfrog=2)
    model.set_standardisation(torch.arange(6.0), torch.arange(1.0, 7.0))
    model.card["species"] = ["Si"]
    path = save_model(model, tmp_path / "new" / "model.safetensors")
    copy = load_model(path)
    assert copy.card == json.loads(path.with_suffix(".json").read_text()) == json.loads(json.dumps(model.card))
    x = torch.randn(4, 6, generator=generator(5), dtype=torch.float64)
    assert torch.equal(copy.elbo(x, rng=generator()), model.elbo(x, rng=generator()))
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.json", "model.safetensors"]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:100])


def _forge(path, **changes):
    card = path.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: path.unlink(), r"model\.safetensors do not exist; train them"),
        (lambda path: path.with_suffix(".json").unlink(), r"model\.json does not exist"),
        (lambda path: path.with_suffix(".json").write_text("{"), r"model\.json is damaged"),
        (lambda path: path.with_suffix(".json").write_text("[]"), r"has format 'list'"),
        (_truncate, "do not belong together"),
        (lambda path: _forge(path, format="other 7"), "has format 'other 7'"),
        (lambda path: _forge(path, architecture={"n_features": 9}), "holds no usable HVAE weights"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, damage, match):
    path = save_model(make_model(), tmp_path / "model.safetensors")
    damage(path)
    with pytest.raises(ModelError, match=match):
        load_model(path)


def test_other_files_and_broken_weights_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"must end in \.safetensors"):
        load_model(tmp_path / "model.pt")
    model = make_model()
    model.raw_noise.data[0] = torch.nan
    with pytest.raises(ModelError, match="raw_noise are not finite"):
        save_model(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
