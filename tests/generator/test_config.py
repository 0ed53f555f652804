"""Options: TOML round trip, overrides, refusals."""

import tomllib
from pathlib import Path

import pytest

from ase_hvae.config import (
    GenerateConfig,
    config_from_dict,
    differences,
    iterate_options,
    parse_natoms,
    read_config,
    write_config,
)
from ase_hvae.errors import ConfigError


def test_toml_round_trip(tmp_path):
    config = GenerateConfig().with_options(seed=7, n=3, natoms="2,4-6", fmax=0.05, calculator="maise,vasp")
    write_config(config, tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config


def test_tables_of_calculators_round_trip(tmp_path):
    tables = {"vasp": {"encut": 400, "setups": {"Si": "_h"}, "lreal": False}, "gpaw": {"kpts": {"size": (2, 2, 2)}}}
    config = GenerateConfig().with_options(calculator="maise, vasp,gpaw", **tables)
    assert config.calculator_settings == {"vasp": tables["vasp"], "espresso": {}, "gpaw": {"kpts": {"size": [2, 2, 2]}}}
    write_config(config, tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config
    assert "espresso" not in config.to_dict()
    tables["vasp"]["setups"]["Si"] = "_GW"
    assert config.vasp["setups"] == {"Si": "_h"}  # a copy of what was handed in


def test_examples_of_the_documentation_are_valid():
    text = (Path(__file__).parents[2] / "docs" / "calculators.md").read_text(encoding="utf-8")
    examples = [tomllib.loads(block.split("```")[0]) for block in text.split("```toml")[1:]]
    assert [config_from_dict(example).run.calculator for example in examples] == ["maise,vasp", "espresso", "gpaw"]


def test_table_of_a_calculator_that_is_not_used_is_refused(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('[run]\ncalculator = "maise"\n[vasp]\nencut = 400\n')
    with pytest.raises(
        ConfigError, match=r"c\.toml: \[vasp\] holds options, but calculator = 'maise' does not use vasp"
    ):
        read_config(file)


def test_resolved_file_names_every_set_option(tmp_path):
    write_config(GenerateConfig(), tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text()
    for _, _, spec in iterate_options():
        assert spec.default is None or f"\n{spec.name} = " in text


def test_options_have_unique_names_and_help():
    names = [spec.name for _, _, spec in iterate_options()]
    assert len(names) == len(set(names))
    assert all(spec.metadata["help"] for _, _, spec in iterate_options())


@pytest.mark.parametrize("names", ["maise", "vasp, maise", "maise-executable"])
def test_a_potential_goes_with_any_calculator_of_maise(names):
    assert GenerateConfig().with_options(potential="x.model", calculator=names).run.potential == "x.model"


def test_integers_pass_for_floats():
    assert GenerateConfig().with_options(pressure=10).relax.pressure == 10


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1-8", tuple(range(1, 9))), ("4", (4,)), ("2,4,6-7", (2, 4, 6, 7)), (" 3 , 1-2", (1, 2, 3)), ("5,5", (5,))],
)
def test_natoms(text, numbers):
    assert parse_natoms(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "0", "8-1", "1.5", "-3", "2;4"])
def test_natoms_refused(text):
    with pytest.raises(ConfigError, match="write 8, 1-8 or 2,4,8"):
        GenerateConfig().with_options(natoms=text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n = 0 in .run. must be at least 1"),
        ({"n": 2.5}, "n = 2.5 in .run. must be int"),
        ({"n": True}, "must be int"),
        ({"seed": -1}, "at least 0"),
        ({"fmax": 0.0}, "fmax = 0.0 in .relax. must be above 0"),
        ({"fmax": float("nan")}, "finite"),
        ({"pressure": float("inf")}, "finite"),
        ({"optimizer": "LBFGS"}, "one of BFGS, FIRE"),
        ({"pearson_threshold": 3.0}, "at most 2.0"),
        ({"sampling": "around"}, "go together"),
        ({"around": "diamond"}, "go together"),
        ({"potential": "x.model", "calculator": "vasp"}, "needs maise"),
        ({"calculator": "vasp", "vasp": "encut = 400"}, "vasp = 'encut = 400' must be a table"),
        (
            {"calculator": "vasp", "vasp": {"encut": None}},
            "vasp.encut = None must be text, true, false, a finite number",
        ),
        ({"calculator": "vasp", "vasp": {"kpts": [1, float("nan")]}}, "vasp.kpts = nan must be text"),
        ({"calculator": "vasp", "gpaw": {"ecut": 400}}, "does not use gpaw; add it to the list or leave the table out"),
        ({"nn": 3}, "unknown option 'nn'"),
    ],
)
def test_nonsense_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        GenerateConfig().with_options(**options)


def test_unknown_section_and_option_name_the_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[relaxation]\nfmax = 0.1\n")
    with pytest.raises(ConfigError, match=r"c\.toml: unknown section \[relaxation\]"):
        read_config(file)
    file.write_text("[relax]\nforce = 0.1\n")
    with pytest.raises(ConfigError, match=r"c\.toml: unknown option 'force' in \[relax\]"):
        read_config(file)
    file.write_text("[relax\n")
    with pytest.raises(ConfigError, match=r"c\.toml: not valid TOML"):
        read_config(file)
    with pytest.raises(ConfigError, match=r"cannot read configuration .*missing"):
        read_config(tmp_path / "missing.toml")


def test_option_in_the_wrong_section_is_refused():
    with pytest.raises(ConfigError, match=r"unknown option 'seed' in \[relax\]"):
        config_from_dict({"relax": {"seed": 1}})


def test_a_kill_while_the_options_are_written_leaves_the_old_file(tmp_path, monkeypatch):
    write_config(GenerateConfig().with_options(seed=1), tmp_path / "config.toml")

    def cut_off(path, text, **_):
        with path.open("w") as file:
            file.write(text[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_config(GenerateConfig().with_options(seed=2), tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml").run.seed == 1


def test_differences_name_each_entry_also_of_a_table_that_one_side_lacks():
    run, vasp = {"n": 4}, {"encut": 350, "kpts": [2, 2, 2]}
    assert not list(differences({"run": run, "vasp": vasp}, {"run": dict(run), "vasp": dict(vasp)}))
    assert list(differences({"run": run}, {"run": {"n": 5}})) == ["run.n was 4, now 5"]
    expected = ["vasp.encut was None, now 350", "vasp.kpts was None, now [2, 2, 2]"]
    assert list(differences({"run": run}, {"run": run, "vasp": vasp})) == expected
    assert list(differences({"vasp": vasp}, {"vasp": vasp | {"kpts": None}})) == ["vasp.kpts was [2, 2, 2], now None"]
    assert list(differences({"fmax": 0.0}, {})) == ["fmax was 0.0, now None"]
