"""Basis blocks: the two standard ones, text, refused input."""

import numpy as np
import pytest
from ase.calculators.calculator import ReadError

from maise_bridge.basis import parse_basis, read_basis, standard_basis, write_basis


@pytest.mark.parametrize(
    ("n_functions", "cutoff", "widths"), [(51, 7.49976456, (51, 145, 282)), (30, 5.99981165, (30, 82, 156))]
)
def test_standard_bases_have_the_published_sizes(n_functions, cutoff, widths):
    basis = standard_basis(n_functions)
    assert basis.n_functions == n_functions
    assert basis.cutoff == pytest.approx(cutoff, abs=1e-8)
    assert tuple(basis.n_inputs(n) for n in (1, 2, 3)) == widths


def test_parameters_are_converted_to_angstrom():
    basis = standard_basis(51)
    unit = 0.529177249 * 1.25
    np.testing.assert_allclose(basis.radial[0], [0.001 / unit**2, 0.0])
    np.testing.assert_allclose(basis.angular[-1], [0.08 / unit**2, 16.0, -1.0])


def test_text_survives_reading_and_writing(tmp_path):
    text = standard_basis(30).text.replace("  1.0\n", "  1.10\n")
    (tmp_path / "basis").write_text(text)
    basis = read_basis(tmp_path / "basis")
    write_basis(basis, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == text
    assert basis.cutoff == pytest.approx(1.1 * standard_basis(30).cutoff)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  B2A ", "B2A   ", r"line 1: expected the caption '  B2A', found 'B2A"),
        ("0.529177249", "-0.5", r"line 2: expected two positive numbers"),
        ("\n  9   4", "\n  9   3", r"line 14: expected a function of type 2 or 4"),
        ("\n  8   2", "\n  8   4", r""),
        (
            " 51   4   0   0   0   6   0   3   0",
            " 51   4   0   0   0   9   0   3   0",
            r"line 56: .* an index into n2",
        ),
        (" 51   4   0 ", " 51   4   1 ", r"line 56: expected the same Rc"),
        (" z    4   1.0000", " z    5   1.0000", r"line 63: expected row 'z count values"),
        (" l    2  -1.0000   1.0000\n", "", r"line 64: expected row 'l count values...', found the end of the file"),
        ("   1.0000\n", "   1.0000\n  B2A  Scaling\n", r"several basis blocks"),
    ],
)
def test_damaged_blocks_are_refused_naming_the_line(old, new, message):
    text = standard_basis(51).text
    assert old in text
    head, _, tail = text.rpartition(old)
    if not message:  # a type-2 row after a type-4 row
        message, tail = r"line 14: expected all functions of type 2 before", tail.replace("\n  9   4", "\n  9   2")
    with pytest.raises(ReadError, match=message):
        parse_basis(head + new + tail)


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="51 or 30"):
        standard_basis(42)
