"""Generate a few silicon crystals from an ASE script, and look at the best ones."""

from ase.db import connect

from ase_hvae import HVAEGenerator, generate


def main() -> None:
    """Unrelaxed crystals one by one, then a short run of the whole funnel."""
    generator = HVAEGenerator(seed=1, natoms="2-6")
    for _ in range(3):
        atoms = generator.get_new_candidate()
        print(f"{atoms.get_chemical_formula():5s} space group {atoms.info['spacegroup']:3d}", end="  ")
        print(f"correlation with its replica {atoms.info['pearson_replica']:.3f}")

    ranked = generate(seed=1, n=4, natoms="2-6", n_phonons=1, workers=1, out="example_run", overwrite=True)
    for candidate in ranked:
        above = 1000 * candidate.energy_above
        print(f"{above:7.1f} meV/atom  {candidate.symbol:8s} {candidate.known}, {candidate.verdict}")

    print("rows in the database:", connect("example_run/candidates.db").count())


if __name__ == "__main__":
    main()
