"""Errors that ase_hvae raises on purpose; the pipeline turns them into records, the CLI into one line."""


class AseHvaeError(Exception):
    """Base class: an expected failure with a message that names value, limit and remedy."""


class StructureError(AseHvaeError, ValueError):
    """A structure is empty, not finite, left-handed, not periodic or has overlapping atoms."""


class SymmetryError(AseHvaeError):
    """No space group was found, or a symmetry operation failed."""


class ModelError(AseHvaeError):
    """HVAE weights are missing, damaged, collapsed or do not fit the request."""


class ReconstructionError(AseHvaeError):
    """The request cannot be met by any crystal (number of atoms, volume, space groups)."""


class RelaxationError(AseHvaeError):
    """A relaxation left physical bounds (volume, distances, energy)."""


class PhononError(AseHvaeError):
    """Force constants or frequencies could not be computed."""


class ElasticityError(AseHvaeError):
    """An elastic tensor could not be computed, or an unstable one has no moduli."""


class ConfigError(AseHvaeError, ValueError):
    """An option or configuration file is wrong."""


class RunFolderError(AseHvaeError):
    """The output folder holds a run already, or belongs to another one."""
