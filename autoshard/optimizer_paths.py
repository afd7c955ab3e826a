"""Which parameter an array of an optimizer's state belongs to.

optax keeps state in trees of the parameters' own structure, somewhere inside its own:

    0/mu/layers/0/kernel   belongs to   layers/0/kernel
"""

from collections.abc import Container, Mapping
from typing import Any

import jax

from autoshard.adapters import path_name


def parameter_of(path: str, parameters: Container[str]) -> str | None:
    """The parameter whose path an array's path ends with, the longest; None where there is none.

    Args:
      path: of the array, its components joined by `/`.
      parameters: paths of parameters.
    """
    names = path.split("/")
    ends = ("/".join(names[start:]) for start in range(len(names)))
    return next((end for end in ends if end in parameters), None)


def mirrored_paths(opt_state: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str | None, ...]:
    """For each array of the state, the parameter that it belongs to and whose shape it has.

    None for the others: counts, factored moments.

    Args:
      opt_state: the optimizer's state, concrete or abstract.
      shapes: of the parameters, by their paths.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        parameter = parameter_of(path_name(path), shapes)
        same = parameter is not None and shapes[parameter] == tuple(leaf.shape)
        found.append(parameter if same else None)
    return tuple(found)
