"""``python -m ase_hvae``: the command line."""

from ase_hvae.cli import main

if __name__ == "__main__":
    main()
