"""``train`` and ``info`` from the command line."""

import pytest
from ase.build import bulk
from ase.io import write

from ase_hvae import load_model
from ase_hvae.cli import main
from ase_hvae.data import load_known


@pytest.fixture
def crystals(tmp_path, monkeypatch):
    """A file of a few known crystals, and one of them as CIF under another cell."""
    monkeypatch.chdir(tmp_path)
    write("known.extxyz", [atoms for atoms in load_known() if len(atoms) <= 4])
    write("diamond.cif", bulk("Si", "diamond", 5.43, cubic=True))
    return tmp_path


def test_train_without_diamond(crystals, capsys):
    main(
        [
            "train",
            "--structures",
            "known.extxyz",
            "--exclude",
            "diamond.cif",
            "--epochs",
            "2",
            "--out",
            "my.safetensors",
        ]
    )
    card = load_model("my.safetensors").card
    assert card["excluded"] == ["diamond"]
    assert "diamond" not in [entry["name"] for entry in card["crystals"]]
    assert 227 not in [entry["spacegroup"] for entry in card["crystals"]]  # nor may proposals know of it
    main(["info", "--model", "my.safetensors"])
    assert card["sha256"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--structures", "missing.extxyz"], "missing.extxyz does not exist"),
        (["--structures", "known.extxyz", "--exclude", "missing.cif"], "missing.cif does not exist"),
        (["--structures", "empty.xyz"], "empty.xyz"),
        (["--structures", "broken.xyz"], "broken.xyz"),
        (["--epochs", "0"], "'0' is no whole number of at least 1"),
        (["--out", "known.extxyz"], "known.extxyz exists; add --overwrite"),
    ],
)
def test_bad_input_is_one_line(crystals, capsys, args, message):
    (crystals / "empty.xyz").touch()
    (crystals / "broken.xyz").write_text('1\nLattice="5 0 0 0 5 0 0 0 5" pbc="T T T"\nSi nan 0 0\n')
    before = (crystals / "known.extxyz").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        main(["train", *args])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert (crystals / "known.extxyz").read_bytes() == before
