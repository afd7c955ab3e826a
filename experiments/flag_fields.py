"""Settings whose fields are flags.

A field is a flag: its name, default and help are written in the dataclass and nowhere else.
`define_flags` turns the fields into flags, `from_flags` the parsed flags into the dataclass, and
`FlagFields.command` goes the other way, to tell a user how to go on.
"""

import dataclasses
import json
import shlex
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar

from absl import flags

from autoshard.errors import AutoshardError


class ConfigError(AutoshardError):
    """A flag has a value that cannot work."""


def option(default: Any, text: str) -> Any:
    """A field with a default and the help of its flag."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class FlagFields:
    """Base of settings; `program` is the module that `python -m` runs with them."""

    program: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**values)

    def dumps(self) -> str:
        """The settings as JSON text, for people and `from_json`."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def arguments(self) -> list[str]:
        """The flags that make this configuration; those at their default are left out."""
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return [_argument(field.name, getattr(self, field.name)) for field in changed]

    def command(self) -> str:
        """A shell command that runs this configuration."""
        return shlex.join(["python", "-m", self.program, *self.arguments()])

    def check_at_least(self, least: float, *names: str) -> None:
        """Raises ConfigError for fields that are below `least`, or NaN."""
        for name in names:
            value = getattr(self, name)
            if not value >= least:
                raise ConfigError(f"--{name}={value} must be at least {least}.")


Settings = TypeVar("Settings", bound=FlagFields)


def define_flags(kind: type[FlagFields], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag for each field of `kind`."""
    hints = typing.get_type_hints(kind)
    define: dict[type, Callable[..., Any]] = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
    }
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        scalar = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
        define[scalar](field.name, field.default, field.metadata["help"], flag_values=flag_values)


def from_flags(kind: type[Settings], flag_values: flags.FlagValues = flags.FLAGS) -> Settings:
    """Turns parsed flags into settings.

    Raises:
      ConfigError: a value cannot work; the message names the flag.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    return kind.from_json({name: flag_values[name].value for name in names})


def _argument(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={value}"
