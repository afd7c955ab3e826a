"""Models by name: the published configurations, and their overriding."""

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType

from models import gpt2, llama, mixer, mixtral, mlp, resnet, t5, vit
from models.spec import ModelSpec

_SPECS: Mapping[str, ModelSpec] = MappingProxyType(
    {
        spec.name: spec
        for family in (gpt2, llama, mixer, mixtral, mlp, resnet, t5, vit)
        for spec in family.SPECS
    }
)


class UnknownModelError(ValueError):
    """No model of that name is registered."""


class UnknownFieldError(ValueError):
    """An override names a field that the model's configuration does not have."""


def names() -> tuple[str, ...]:
    """Returns the names of all models, sorted."""
    return tuple(sorted(_SPECS))


def get(name: str, **overrides: object) -> ModelSpec:
    """Returns a registered model, with some fields of its configuration replaced.

    Args:
        name: one of `names()`.
        **overrides: fields of the family's configuration, for instance `num_layers=2`.

    Raises:
        UnknownModelError: the name is not registered.
        UnknownFieldError: the configuration has no such field.
        ValueError: the configuration refuses the values.
    """
    if name not in _SPECS:
        raise UnknownModelError(f"Unknown model {name!r}. {_advice(name, names())}")
    spec = _SPECS[name]
    fields = tuple(field.name for field in dataclasses.fields(spec.config))
    for field in overrides:
        if field not in fields:
            raise UnknownFieldError(
                f"Model {name!r} has no field {field!r} to override. {_advice(field, fields)}"
            )
    if not overrides:
        return spec
    return dataclasses.replace(spec, config=dataclasses.replace(spec.config, **overrides))


def _advice(word: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    hint = f"The nearest: {', '.join(nearest)}. " if nearest else ""
    return f"{hint}There are: {', '.join(known)}."
