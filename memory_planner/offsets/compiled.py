"""Functions over NumPy arrays, compiled by numba where it is installed.

Without numba the same functions run as the Python that they are: same results, about a hundred
times slower.
"""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

_njit: Any = None
try:
    from numba import njit as _njit
except ImportError:
    warnings.warn(
        "numba is not installed: memory_planner.offsets searches in plain Python, about a hundred "
        "times slower; `pip install numba` for speed",
        RuntimeWarning,
        stacklevel=2,
    )


def compiled(function: _F) -> _F:
    """Decorator: compiled at the first call, and kept on disk for later processes.

    What is kept is renewed when the function's own file changes, not those of functions that it
    calls: after an edit here, `make clean`.
    """
    if _njit is None:
        return function
    result: Any
    try:
        result = _njit(cache=True)(function)
    except RuntimeError:  # numba found no folder that it may write its cache to
        result = _njit(function)
    return result
