"""The passes by name, as text, as JSON, and as values."""

import ast
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from autoshard.errors import PassError
from passes.constrain import Constrain
from passes.microbatch import Microbatch
from passes.offload import Offload
from passes.pass_pipeline import Pass
from passes.pipeline import Pipeline
from passes.precision import MixedPrecision
from passes.remat import Remat
from passes.sequence import Sequence as SequencePass
from passes.simplify import Simplify
from passes.stack_layers import StackLayers

AUTO = "auto"
"""Not a pass but the wish to have some chosen: see `autoshard.search`."""

CLASSES: Mapping[str, type[Any]] = MappingProxyType(
    {
        "simplify": Simplify,
        "precision": MixedPrecision,
        "stack_layers": StackLayers,
        "sequence": SequencePass,
        "constrain": Constrain,
        "remat": Remat,
        "offload": Offload,
        "microbatch": Microbatch,
        "pipeline": Pipeline,
    }
)


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """A pass as a plan holds it.

    Attributes:
      name: of the pass.
      fields: (field, value) pairs of those that are not at their default, as JSON has them.
      notes: what it did, a sentence each.
    """

    name: str
    fields: tuple[tuple[str, Any], ...]
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.fields)})"


def parse_passes(passes: Any) -> tuple[Pass, ...]:
    """Passes from what the user wrote.

    Args:
      passes: None, a pass, text such as `stack_layers, microbatch(count=4)`, or a list of these.

    Raises:
      PassError: an entry is no pass, or names none, or its settings cannot be read.
    """
    if passes is None:
        return ()
    if isinstance(passes, str):
        return tuple(_called(node, passes) for node in _entries(passes))
    if isinstance(passes, Sequence):
        return tuple(one for item in passes for one in parse_passes(item))
    if isinstance(passes, type) or not isinstance(passes, Pass):
        raise PassError(
            f"{passes!r} is not a pass: give an object with a `name` and `apply(program)`, or the "
            f"name of one ({', '.join(CLASSES)})"
        )
    return (passes,)


def without_auto(passes: Any) -> tuple[Any, bool]:
    """The passes without the entry `auto`, and whether it was there.

    Raises:
      PassError: a text cannot be read.
    """
    if isinstance(passes, str):
        entries = _entries(passes)
        kept = [e for e in entries if not (isinstance(e, ast.Name) and e.id == AUTO)]
        return ", ".join(map(ast.unparse, kept)), len(kept) < len(entries)
    if isinstance(passes, list | tuple):
        both = [without_auto(one) for one in passes]
        return tuple(rest for rest, _ in both if rest != ""), any(found for _, found in both)
    return passes, False


def _entries(text: str) -> list[ast.expr]:
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError as error:
        raise PassError(
            f"passes={text!r} cannot be read: write names and settings as in "
            "'stack_layers, microbatch(count=4)'"
        ) from error
    assert isinstance(tree, ast.List)
    return tree.elts


def _called(node: ast.expr, text: str) -> Pass:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name) or call.args:
        raise PassError(
            f"passes={text!r}: {ast.unparse(node)!r} is not a pass with named settings: write "
            "'microbatch(count=4)'"
        )
    try:
        fields = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except ValueError as error:
        raise PassError(
            f"passes={text!r}: settings must be numbers, strings or tuples of them"
        ) from error
    return make(call.func.id, fields)


def make(name: str, fields: Mapping[str, Any]) -> Pass:
    """The pass of a name, with some fields set.

    Raises:
      PassError: there is no such pass, or it has no such field.
    """
    if name not in CLASSES:
        near = difflib.get_close_matches(name, CLASSES, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}" if near else ""
        raise PassError(f"unknown pass {name!r}{hint}? There are {', '.join(CLASSES)}")
    kind = CLASSES[name]
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    for field in fields:
        if field not in known:
            raise PassError(f"pass {name!r} has no setting {field!r}: it has {', '.join(known)}")
    try:
        one: Pass = kind(**{k: as_tuples(v) for k, v in fields.items()})
    except TypeError as error:
        raise PassError(f"pass {name!r} needs more settings ({error})") from error
    return one


def record(one: Pass, notes: Sequence[str] = ()) -> PassRecord:
    """A pass as data; what JSON cannot hold is kept as text."""
    fields: list[tuple[str, Any]] = []
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            value = getattr(one, field.name)
            if field.init and value != field.default:
                fields.append((field.name, _plain(value)))
    return PassRecord(one.name, tuple(fields), tuple(notes))


def from_records(records: Sequence[PassRecord]) -> tuple[Pass, ...]:
    """The passes that a plan was made with.

    Raises:
      PassError: one is not among those that come with autoshard.
    """
    unknown = [r.name for r in records if r.name not in CLASSES]
    if unknown:
        raise PassError(
            f"the plan was made with the pass {unknown[0]!r}, which does not come with autoshard: "
            "give passes= as when it was made"
        )
    return tuple(make(r.name, dict(r.fields)) for r in records)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_plain(x) for x in value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def as_tuples(value: Any) -> Any:
    """A value of a pass's field as passes hold it: lists, which JSON has, become tuples."""
    return tuple(as_tuples(x) for x in value) if isinstance(value, (tuple, list)) else value
