"""``train`` and ``info`` from the command line."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from ase_hvae import load_model
from ase_hvae.cli import main
from ase_hvae.data import load_known
from ase_hvae.replicas import decode


@pytest.fixture
def crystals(tmp_path, monkeypatch):
    """A file of a few known crystals, and one of them as CIF under another cell."""
    monkeypatch.chdir(tmp_path)
    known = [atoms for atoms in load_known() if len(atoms) <= 4]
    write("known.extxyz", known)
    write("known.db", known)
    write("diamond.cif", bulk("Si", "diamond", 5.43, cubic=True))
    return tmp_path


@pytest.mark.parametrize(("file", "name"), [("known.extxyz", "diamond"), ("known.db", "known.db#0")])
def test_train_without_diamond(crystals, capsys, file, name):
    main(["train", "--structures", file, "--exclude", "diamond.cif", "--epochs", "2", "--out", "my.safetensors"])
    card = load_model("my.safetensors").card
    assert card["excluded"] == [name]
    assert "diamond" not in [entry["name"] for entry in card["crystals"]]
    assert 227 not in [entry["spacegroup"] for entry in card["crystals"]]  # nor may proposals know of it
    main(["info", "--model", "my.safetensors"])
    assert card["sha256"] in capsys.readouterr().out


def polytype(stacking, a, c):
    """SiC bilayers stacked as A, B, C; published lattice constants in Å, ideal internal positions."""
    place = {"A": (0, 0), "B": (1 / 3, 2 / 3), "C": (2 / 3, 1 / 3)}
    n = len(stacking)
    sites = [(*place[layer], (i + shift) / n) for shift in (0, 0.75) for i, layer in enumerate(stacking)]
    return Atoms(f"Si{n}C{n}", scaled_positions=sites, cell=[a, a, c, 90, 90, 120], pbc=True)


def test_train_on_a_folder_of_a_binary(tmp_path, monkeypatch, capsys):
    """Silicon carbide from published lattice constants; a held-out polytype is found under another cell."""
    monkeypatch.chdir(tmp_path)
    crystals = {
        "2H": polytype("AB", 3.076, 5.048),
        "4H": polytype("ABCB", 3.073, 10.053),
        "6H": polytype("ABCACB", 3.081, 15.117),
        "zincblende": bulk("SiC", "zincblende", 4.36),
        "rocksalt": bulk("SiC", "rocksalt", 4.05),
        "caesium chloride": bulk("SiC", "cesiumchloride", 2.5),
    }
    (tmp_path / "all").mkdir()
    (tmp_path / "held_out").mkdir()
    for name, atoms in crystals.items():
        write(f"all/{name}.cif", atoms)
    write("held_out/3C.cif", bulk("SiC", "zincblende", 4.4, cubic=True))
    main(["train", "--structures", "all", "--exclude", "held_out", "--epochs", "8", "--out", "sic.safetensors"])
    model = load_model("sic.safetensors")
    assert model.card["species"] == ["C", "Si"]
    assert model.card["excluded"] == ["zincblende.cif#0"]
    assert [entry["spacegroup"] for entry in model.card["crystals"]] == [186, 186, 186, 221, 225]
    assert model.card["crystals"][0]["name"] == "2H.cif#0"
    assert "left out: zincblende.cif#0" in capsys.readouterr().out
    (replica,) = decode(model, np.zeros((1, 2)))
    assert replica.rdf.shape == (3, 200)
    with pytest.raises(SystemExit):
        main(["generate", "--model", "sic.safetensors", "--out", "run"])
    assert "no table of known crystals for 'CSi'" in capsys.readouterr().err


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
