"""Checks of configurations, so that a bad field fails by its name and not inside a trace."""

import dataclasses
import typing
from typing import Any, ClassVar, Literal, Protocol

import jax.numpy as jnp


class Dataclass(Protocol):
    """Any dataclass instance."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


def check_fields(config: Dataclass) -> None:
    """Raises ValueError, naming the field, where a value does not suit the field's type.

    An `int`, or each in a `tuple[int, ...]`, must be a positive integer, since all of them are
    sizes or counts; a `bool` True or False; a `Literal` one of its values; `dropout_rate` in
    [0, 1); `dtype` None or the name of a floating-point type. The rest is not checked.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        problem = _problem(field.name, hint, value)
        if problem:
            raise ValueError(f"{type(config).__name__}: {field.name}={value!r} {problem}.")


def _problem(name: str, hint: object, value: object) -> str | None:
    if hint is int and not _is_size(value):
        return "must be a positive integer"
    if hint == tuple[int, ...] and not (isinstance(value, tuple) and all(map(_is_size, value))):
        return "must be a tuple of positive integers"
    if hint is bool and not isinstance(value, bool):
        return "must be True or False"
    if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
        return f"must be one of {', '.join(map(repr, typing.get_args(hint)))}"
    if name == "dropout_rate" and not (isinstance(value, int | float) and 0 <= value < 1):
        return "must be at least 0 and less than 1"
    if name == "dtype" and value is not None and not _is_float_type(value):
        return "must be the name of a floating-point type, for instance 'bfloat16'"
    return None


def _is_size(value: object) -> bool:
    # True is an int to Python, but never meant as a size.
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_float_type(name: object) -> bool:
    if not isinstance(name, str):
        return False
    try:
        return bool(jnp.issubdtype(jnp.dtype(name), jnp.floating))
    except TypeError:
        return False


def compute_dtype(name: str | None) -> jnp.dtype | None:
    """The dtype that a configuration names; None lets layers follow their parameters and inputs."""
    return None if name is None else jnp.dtype(name)


def check_divides(config: Dataclass, whole: str, part: str) -> None:
    """Raises ValueError where the attribute `part` of `config` does not divide its `whole`."""
    whole_size, part_size = getattr(config, whole), getattr(config, part)
    if whole_size % part_size:
        raise ValueError(
            f"{type(config).__name__}: {whole}={whole_size} is not a multiple of "
            f"{part}={part_size}: choose a {part} that divides it."
        )
