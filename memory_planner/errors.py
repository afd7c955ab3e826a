"""The error of this package that a user can do something about."""


class MemoryPlannerError(ValueError):
    """A problem, a mapping or a setting that the planner cannot work with, and the way out."""
