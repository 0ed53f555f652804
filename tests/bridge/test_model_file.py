"""Model files: exact text, checksum, refused files."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import ReadError

from maise_bridge import MaiseModel, read_model, write_model
from maise_bridge.basis import standard_basis
from maise_bridge.model_file import format_model

DATA = Path(__file__).parents[1] / "data" / "bridge"
TEXT = (DATA / "si.model").read_text()


@pytest.mark.parametrize("name", ["si", "mgsi", "cgesi"])
def test_reading_and_writing_returns_every_byte(name, tmp_path):
    path = DATA / f"{name}.model"
    model = read_model(path)
    write_model(model, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert model.unique_id == model.info["model unique ID"]
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]


def test_fields_follow_the_file():
    model = read_model(DATA / "mgsi.model")
    assert model.species == ("Mg", "Si")
    assert model.architecture == (82, 10, 10, 1)
    assert model.n_weights == 2 * (83 * 10 + 11 * 10 + 11)
    assert model.info["reference"].startswith("random weights")
    rows = (DATA / "mgsi.model").read_text().split("range\n")[1].splitlines()
    assert float(rows[83].split()[1]) == model.maximum[1, 1]
    weights = [float(line) for line in rows[2 * 82 + 3 :][: model.n_weights]]
    assert weights[:10] == model.biases[0][0].tolist()
    assert weights[21 : 21 + 82] == model.weights[0][0, 0].tolist()
    assert weights[951 + 21 + 82] == model.weights[0][1, 1, 0]
    assert weights[-1] == model.weights[2][1, 0, 9]


def test_checksum_counts_weights_and_biases():
    # floor(1e11 * 1.5) mod 1e8 = 0; one more unit of 1e-11 counts
    basis = standard_basis(30)
    weights = [np.zeros((1, 2, 30)), np.zeros((1, 1, 2))]
    weights[0][0, 1, 3] = -0.5
    weights[1][0, 0, 1] = 12.5e-11
    biases = [np.zeros((1, 2)), np.full((1, 1), 1.0)]
    model = MaiseModel.create(["Al"], basis, maximum=np.ones((1, 30)), weights=weights, biases=biases)
    assert model.unique_id == "0000000C"


def test_created_model_is_readable_and_keeps_what_it_was_told(tmp_path):
    model = read_model(DATA / "si.model")
    new = MaiseModel.create(
        ["Sn"],
        model.basis,
        maximum=model.maximum,
        weights=model.weights,
        biases=model.biases,
        info={"train energy error": "0.001  eV/atom"},
    )
    write_model(new, tmp_path / "model")
    again = read_model(tmp_path / "model")
    assert again.info["species types"] == "50"
    assert again.info["train energy error"] == "0.001  eV/atom"
    assert again.info["model unique ID"] == model.unique_id
    np.testing.assert_allclose(again.scale * again.maximum, 1.0, rtol=1e-12)


def test_changed_species_renews_the_header():
    model = replace(read_model(DATA / "si.model"), species=("Ge",))
    assert "|  species types        |  32    " in format_model(model)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "|                    neural network",
            "|                    Sutton-Chen potential",
            r"line 2: expected a neural network .*Lennard-Jones models are not supported, found '.*Sutton",
        ),
        ("-----", "CIF", r"line \d+: expected"),
        ("maise.3.0.00", "maise.2.3.99", r"line 26: expected maise version 2.4.00 or later"),
        ("|  reference            |", "|  species references   |", r"line 11: expected no 'species references'"),
        ("|  species types        |  14", "|  species types        |  50", r"line 7: .*atomic numbers \[50\] \(Sn\)"),
        ("|  51 10 10 1", "|  51 10 1   ", r"line 9: expected 4 positive"),
        ("|  641 ", "|  640 ", r"line 10: expected number of weights 641"),
        ("|  number of weights    |", "|  nomber of weights    |", r"no entry 'number of weights'"),
        (
            "                    range\n   0.0",
            "                    range\n   x.0",
            r"line 42: expected minimum, maximum",
        ),
        ("neural network weights  ", "neural network wieghts  ", r""),
        ("  B2A ", "  B3A ", r"line 738: expected the caption '  B2A'"),
    ],
)
def test_damaged_files_are_refused_naming_file_and_line(old, new, message, tmp_path):
    assert old in TEXT
    (tmp_path / "bad.model").write_text(TEXT.replace(old, new, 1))
    if not message:  # titles of boxes are for people
        assert read_model(tmp_path / "bad.model").species == ("Si",)
        return
    with pytest.raises(ReadError, match=rf"bad\.model.*{message}"):
        read_model(tmp_path / "bad.model")


@pytest.mark.parametrize("n_lines", [0, 1, 20, 60, 400, 737, 760, 796])
def test_truncated_files_are_refused(n_lines, tmp_path):
    (tmp_path / "model").write_text("".join(TEXT.splitlines(keepends=True)[:n_lines]))
    with pytest.raises(ReadError, match=rf"model, line {n_lines + 1}: expected .*found the end of the file"):
        read_model(tmp_path / "model")


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    lines = TEXT.splitlines()
    lines[200] = "   nan"
    (tmp_path / "model").write_text("\n".join(lines))
    with pytest.raises(ReadError, match="line 201: expected one weight, found 'nan'"):
        read_model(tmp_path / "model")


def test_binary_and_missing_files_are_refused(tmp_path):
    (tmp_path / "model").write_bytes(b"\x93NUMPY\xff\x00")
    with pytest.raises(ReadError, match="not text"):
        read_model(tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "absent")


def test_inconsistent_model_is_refused_and_nothing_written(tmp_path):
    model = read_model(DATA / "si.model")
    with pytest.raises(ValueError, match=r"maximum has shape \(1, 50\), expected \(1, 51\)"):
        write_model(replace(model, maximum=model.maximum[:, 1:]), tmp_path / "model")
    with pytest.raises(ValueError, match="scale has a number that is not finite"):
        write_model(replace(model, scale=model.scale * np.nan), tmp_path / "model")
    with pytest.raises(ValueError, match="unknown header entry 'colour'"):
        MaiseModel.create(["Si"], model.basis, maximum=model.maximum, weights=[], biases=[], info={"colour": "red"})
    assert list(tmp_path.iterdir()) == []


def test_model_files_need_no_torch():
    code = (
        "import sys, maise_bridge.model_file, maise_bridge; maise_bridge.read_model; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
