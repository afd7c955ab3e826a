"""Errors that a user can act on.

Every message is one paragraph that names the thing, the sizes involved and the way out. All derive
from `AutoshardError`, itself a `ValueError`, so that `except ValueError` keeps working in scripts.
"""


class AutoshardError(ValueError):
    """Base class of every error that autoshard raises on purpose."""


class ModelError(AutoshardError):
    """The model cannot be adapted: unknown kind, or a signature that the batch does not fit."""


class LossError(AutoshardError):
    """No default loss fits the model's output and the batch."""


class MeshError(AutoshardError):
    """A mesh or topology cannot be parsed or built, or lacks the devices that were asked for."""


class RuleError(AutoshardError):
    """A rule set is unknown, names a missing mesh axis or dimension, or does not divide."""


class BatchError(AutoshardError):
    """A batch does not fit the plan: sizes that do not divide, missing or unexpected arrays."""


class PlanError(AutoshardError):
    """A plan is corrupt, of another version, or was made for another program or mesh."""


class NoFitError(PlanError):
    """No layout fits the memory of the devices; the message has the ways out."""


class UnmodelledError(AutoshardError):
    """Strict mode met a primitive that has no sharding rule."""


class DeviceError(AutoshardError):
    """The operation needs devices that this process does not have."""


class CheckpointError(AutoshardError):
    """A checkpoint directory is foreign, unwritable or holds nothing that can be restored."""


class PassError(AutoshardError):
    """A pass cannot do what was asked of it, or broke the program; the message names it."""


class CompileError(AutoshardError):
    """A compiler refuses a program, crashes, or takes too long."""


class ReportError(AutoshardError):
    """A report cannot be made, written or read: plotly or a file is missing, foreign or damaged."""
