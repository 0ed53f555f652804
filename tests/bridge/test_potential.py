"""Native evaluation: formulas written out, golden numbers, derivatives, invariances."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.neighborlist import neighbor_list as ase_neighbor_list

from maise_bridge import MaiseCalculator, MaisePotential, read_model
from maise_bridge.basis import parse_basis
from maise_bridge.descriptors import SymmetryFunctions

DATA = Path(__file__).parents[1] / "data" / "bridge"
GOLDEN = json.loads((DATA / "golden.json").read_text())["cases"]


def golden_atoms(case):
    return Atoms(case["symbols"], case["positions"], cell=case["cell"], pbc=case["pbc"])


def crystal(symbols, seed=0):
    """Distorted zinc-blende cell of eight atoms."""
    atoms = bulk("Si", cubic=True)
    rng = np.random.default_rng(seed)
    atoms.symbols = rng.choice(symbols, 8)
    atoms.rattle(0.15, rng=rng)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.03), scale_atoms=True)
    return atoms


def written_out_energy(atoms, model):
    """Energy by loops over the formulas, one neighbour at a time; no core repulsion."""
    basis, n = model.basis, len(model.species)
    n2, n4 = len(basis.radial), len(basis.angular)
    offsets = {(0,): 0, (0, 0): n2, (1,): n2 + n4, (0, 1): 2 * n2 + n4, (1, 1): 2 * n2 + 2 * n4}
    kind = [model.species.index(symbol) for symbol in atoms.symbols]
    first, second, vectors = ase_neighbor_list("ijD", atoms, basis.cutoff)

    def fc(r):
        return 0.5 * (np.cos(np.pi * r / basis.cutoff) + 1) if r < basis.cutoff else 0.0

    total = 0.0
    for i in range(len(atoms)):
        values = np.zeros(basis.n_inputs(n))
        around = [((kind[j] - kind[i]) % n, d) for j, d in zip(second[first == i], vectors[first == i], strict=True)]
        for a, (class_a, d_a) in enumerate(around):
            r_a = np.linalg.norm(d_a)
            values[offsets[class_a,] :][:n2] += np.exp(-basis.radial[:, 0] * (r_a - basis.radial[:, 1]) ** 2) * fc(r_a)
            for class_b, d_b in around[:a]:
                r_b, r_ab = np.linalg.norm(d_b), np.linalg.norm(d_a - d_b)
                eta, zeta, sign = basis.angular.T
                term = (1 + sign * (d_a @ d_b) / (r_a * r_b)) ** zeta * np.exp(-eta * (r_a**2 + r_b**2 + r_ab**2))
                block = offsets[tuple(sorted((class_a, class_b)))]
                values[block:][:n4] += 2 ** (1 - zeta) * 2 * term * fc(r_a) * fc(r_b) * fc(r_ab)
        signal = (values - model.minimum[kind[i]]) * model.scale[kind[i]]
        for matrix, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
            signal = np.tanh(matrix[kind[i]] @ signal + bias[kind[i]])
        total += float((model.weights[-1][kind[i]] @ signal + model.biases[-1][kind[i]])[0])
    return total


@pytest.mark.parametrize("name", ["si", "mgsi"])
def test_energy_equals_the_formulas_written_out(name):
    model = read_model(DATA / f"{name}.model")
    atoms = crystal(model.species)[:4]
    expected = written_out_energy(atoms, model)
    assert MaisePotential(model, core_repulsion=False).evaluate([atoms])[0].energy == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['model']}-{len(case['symbols'])}")
def test_golden_numbers_stay(case):
    result = MaisePotential.from_file(DATA / case["model"]).evaluate([golden_atoms(case)])[0]
    assert result.energy == pytest.approx(case["energy"], abs=1e-10)  # summation order differs between machines
    np.testing.assert_allclose(result.energies, case["energies"], atol=1e-10)
    np.testing.assert_allclose(result.forces, case["forces"], atol=1e-9)
    np.testing.assert_allclose(result.virial, case["virial"], atol=1e-9)


@pytest.mark.parametrize("name", ["si", "mgsi", "cgesi"])
def test_forces_and_stress_equal_finite_differences(name):
    atoms = crystal(read_model(DATA / f"{name}.model").species)[:3]
    atoms.calc = MaiseCalculator(DATA / f"{name}.model")
    # second-order differences of 1e-4 Å: errors about 1e-8 of the scale
    forces = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-6)
    stress = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=1e-6)


def test_core_repulsion_has_its_value_and_derivative():
    model = read_model(DATA / "si.model")
    atoms = Atoms("Si2", [[0, 0, 0], [0, 0, 1.0]])
    soft, hard = (MaisePotential(model, core_repulsion=flag).evaluate([atoms])[0] for flag in (False, True))
    # both ends: 2 * 100 * 1/2 (1 + cos(pi/2)) * 2/1; slope: 200 * (-(pi/2)/2 * 2 - 1/2 * 2)
    assert hard.energy - soft.energy == pytest.approx(200.0)
    assert hard.repulsion == pytest.approx([100.0, 100.0])
    assert (hard.forces - soft.forces)[1, 2] == pytest.approx(100 * np.pi + 200)
    half = MaisePotential(model, core_repulsion=50.0).evaluate([atoms])[0]
    assert half.energy - soft.energy == pytest.approx(100.0)
    assert hard.stress is None


def test_supercell_has_the_same_energy_per_atom():
    potential = MaisePotential.from_file(DATA / "mgsi.model")
    atoms = crystal(["Mg", "Si"])[:3]
    large = make_supercell(atoms, [[1, 1, 0], [0, 2, 0], [0, 0, 1]])
    one, many = potential.evaluate([atoms, large])
    assert many.energy == pytest.approx(2 * one.energy, abs=1e-10)
    np.testing.assert_allclose(many.stress, one.stress, atol=1e-12)


def test_rotation_turns_forces_and_permutation_reorders_them():
    potential = MaisePotential.from_file(DATA / "cgesi.model")
    atoms = crystal(["C", "Ge", "Si"])
    order = np.random.default_rng(1).permutation(8)
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    matrix = np.linalg.solve(atoms.cell.array, turned.cell.array)
    plain, permuted, rotated = potential.evaluate([atoms, atoms[order], turned])
    assert permuted.energy == pytest.approx(plain.energy, abs=1e-10)
    assert rotated.energy == pytest.approx(plain.energy, abs=1e-10)
    np.testing.assert_allclose(permuted.forces, plain.forces[order], atol=1e-10)
    np.testing.assert_allclose(rotated.forces, plain.forces @ matrix, atol=1e-10)
    np.testing.assert_allclose(plain.forces.sum(0), 0, atol=1e-10)


def test_one_call_for_many_equals_many_calls_bit_for_bit():
    potential = MaisePotential.from_file(DATA / "si.model")
    structures = [
        bulk("Si"),
        crystal(["Si"]),
        Atoms("Si"),
        crystal(["Si"], seed=4)[:5],
        Atoms("Si2", [[0, 0, 0], [2, 1, 0]]),
    ]
    for atoms, together in zip(structures, potential.evaluate(structures), strict=True):
        assert_same(potential.evaluate([atoms])[0], together, 0.0)


def test_one_atom_cells_have_no_forces():
    result = MaisePotential.from_file(DATA / "si.model").evaluate([bulk("Si", "fcc", a=3.9)])[0]
    np.testing.assert_allclose(result.forces, 0, atol=1e-12)


def assert_same(found, expected, tolerance):
    assert found.energy == pytest.approx(expected.energy, abs=tolerance)
    for name in ("energies", "forces", "virial", "extrapolation"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["si", "mgsi", "cgesi"])
def test_torch_computes_the_same(name):
    model = read_model(DATA / f"{name}.model")
    structures = [crystal(model.species), bulk(model.species[0], "fcc", a=4), crystal(model.species, seed=3)[:3]]
    structures[2].pbc = False
    compiled = MaisePotential(model).evaluate(structures)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        found = MaisePotential(model, device="cpu", dtype=dtype).evaluate(structures)
        for one, other in zip(found, compiled, strict=True):
            assert_same(one, other, tolerance)
    energies = MaisePotential(model).evaluate(structures, forces=False)
    assert [one.energy for one in energies] == [other.energy for other in compiled]


def test_small_chunks_of_torch_change_nothing(monkeypatch):
    potential = MaisePotential(read_model(DATA / "mgsi.model"), device="cpu")
    atoms = crystal(["Mg", "Si"])
    expected = potential.evaluate([atoms])[0]
    monkeypatch.setitem(SymmetryFunctions.chunks.__kwdefaults__, "triplets", 300)
    assert_same(potential.evaluate([atoms])[0], expected, 1e-11)


def test_bases_beyond_the_compiled_tables_are_left_to_torch():
    model = read_model(DATA / "si.model")
    text = model.basis.text.replace("2.0000   4.0000  16.0000", "2.0000   3.0000  16.0000")
    assert text != model.basis.text
    other = replace(model, basis=parse_basis(text))
    atoms = crystal(["Si"])[:4]
    found = MaisePotential(other, core_repulsion=False).evaluate([atoms])[0]
    assert found.energy == pytest.approx(written_out_energy(atoms, other), abs=1e-11)


def test_extrapolation_says_how_far_outside():
    potential = MaisePotential.from_file(DATA / "si.model")
    inside, outside = potential.evaluate([bulk("Si"), bulk("Si", a=3.6)])
    assert np.all(inside.extrapolation == 0)
    assert np.all(outside.extrapolation > 0.5)


def test_species_outside_the_model_are_refused():
    with pytest.raises(ValueError, match="structure has Mg, Sn; the model covers Si"):
        MaisePotential.from_file(DATA / "si.model").evaluate([Atoms("MgSn", [[0, 0, 0], [0, 0, 3]])])


def test_no_structures_give_no_results():
    assert MaisePotential.from_file(DATA / "si.model").evaluate([]) == []
