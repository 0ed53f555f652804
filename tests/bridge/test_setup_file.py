"""Setup files of MAISE: round trip, completeness, refusals."""

import pytest
from ase.calculators.calculator import ReadError

from maise_bridge.setup_file import format_setup, read_setup, write_setup

FIT = {
    "JOBT": 40,
    "NSPC": 2,
    "TSPC": (12, 14),
    "NSYM": 51,
    "NCMP": 145,
    "TEFS": 1,
    "NTRN": -90,
    "NTST": -10,
    "NNNN": 2,
    "NNNU": (10, 10),
    "NNGT": (1, 1),
    "LREG": 1e-8,
    "MITR": 400,
    "SEED": 3,
}


@pytest.mark.parametrize("tags", [{"JOBT": 20, "NDIM": 3, "ETOL": 1e-8}, {"JOBT": 22, "NDIM": 3}, FIT])
def test_a_file_survives_reading_and_writing(tmp_path, tags):
    write_setup(tags, tmp_path / "setup")
    read = read_setup(tmp_path / "setup")
    assert {tag: read[tag] for tag in tags} == tags
    assert format_setup(read) == (tmp_path / "setup").read_text()


def test_every_tag_without_a_default_in_maise_is_written():
    text = format_setup({"JOBT": 20, "NDIM": 0})
    assert {"NPAR", "MMAX", "MITR", "RLXT", "ETOL", "MINT", "PGPA", "COUT"} <= {line[:4] for line in text.splitlines()}
    lines = [line[:4] for line in format_setup(FIT).splitlines()]
    assert lines.index("NSPC") < lines.index("TSPC")
    assert lines.index("NNNN") < min(lines.index("NNNU"), lines.index("NNGT"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NDMI": 3}, "unknown setup tag 'NDMI'; known: JOBT"),
        ({"MINT": 4}, "MINT is 4; it must be one of 0, 1, 2, 3"),
        ({"NDIM": 1}, "NDIM is 1; it must be one of 0, 2, 3"),
        ({"RLXT": 5}, "RLXT is 5; it must be one of 0, 2, 3, 7, 8"),
        ({"ETOL": 0.0}, "ETOL is 0.0; it must be a finite number > 0"),
        ({"PGPA": float("nan")}, "PGPA is nan; it must be a finite number"),
        ({"MMAX": 20.0}, r"MMAX is 20\.0; it must be a whole number >= 1"),
        ({"MITR": True}, "MITR is True"),
        ({"MITR": 5}, "RLXT is missing"),
        ({"TSPC": (14,)}, "TSPC has 1 values .*; NSPC is None"),
    ],
)
def test_tags_that_maise_would_misread_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        format_setup({"JOBT": 20, "NDIM": 3, **change})


@pytest.mark.parametrize("tags", [{"NDIM": 3}, {"JOBT": 20}])
def test_mandatory_tags_are_asked_for(tags):
    with pytest.raises(ValueError, match="is missing"):
        format_setup(tags)


def test_reading_follows_maise_and_names_the_line(tmp_path):
    path = tmp_path / "setup"
    path.write_text("a comment\r\nJOBT 20 a job\r\nMINT 1\r\nMINT 2\r\n MITR 3\r\n")
    assert read_setup(path) == {"JOBT": 20, "MINT": 2}
    path.write_text("JOBT 20\nMINT seven\n")
    with pytest.raises(ReadError, match="setup, line 2: expected MINT to be one of 0, 1, 2, 3, found seven"):
        read_setup(path)
