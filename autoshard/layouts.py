"""From rule sets' choices to a layout of every array.

Order of decisions: the batch over the data axes; classes of dimensions, in the order of the rule
sets; single arrays, which override classes; last the storage of parameters, gradients and
optimizer state, which adds data axes to how an array is used (ZeRO).
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

from autoshard.errors import BatchError
from autoshard.lookup_tables import looked_up_dims
from autoshard.mesh_shape import MeshShape, SplitMesh, coalesce, rename, split_into_primes
from autoshard.named_dims import Analysis
from autoshard.rule_sets.base import (
    Choices,
    ClassChoice,
    LeafChoice,
    RuleContext,
    RuleSet,
    Subject,
    take_parts,
)
from autoshard.scales_and_biases import scales_and_biases
from autoshard.scanned_stacks import scanned_atoms
from passes.program import Leaf, Role
from passes.spec import Spec

AtomParts = Mapping[int, tuple[str, ...]]

# Elements up to which ZeRO leaves a scale or bias whole: its gather is a latency and little else,
# and there are several in a layer. DeepSpeed's default of `stage3_param_persistence_threshold`.
_SMALL = 100_000

# Columns of a table that a shard has at least. With 16 of 4,096 the step of Llama-3-8B on 256 v6e
# is 1.4% shorter by simulation than with rows cut, and takes no more memory.
_COLUMNS = 16


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """Where one input of the program lives.

    Attributes:
      leaf: the array.
      dims: names of its dimensions.
      compute: how the forward and backward computation sees it.
      param: how it is stored between steps.
      grad: how its gradient is kept.
      opt: how optimizer state of its shape is kept.
      rule: the rule set that decided.
      why: its reason.
    """

    leaf: Leaf
    dims: tuple[str, ...]
    compute: Spec
    param: Spec
    grad: Spec
    opt: Spec
    rule: str
    why: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout of all inputs of a program on a mesh.

    Attributes:
      mesh: the mesh, its axes split where some array needs it.
      rules: names of the rule sets.
      zero_stage: 0 to 3.
      data_parts: parts that shard the batch.
      tensor_parts: parts that rule sets claimed or reserved.
      arrays: one entry an input of the program.
      notes: what the user should know.
    """

    mesh: SplitMesh
    rules: tuple[str, ...]
    zero_stage: int
    data_parts: tuple[str, ...]
    tensor_parts: tuple[str, ...]
    arrays: tuple[ArrayLayout, ...]
    notes: tuple[str, ...]


def lay_out(subject: Subject, shape: MeshShape, rules: Sequence[RuleSet]) -> Layout:
    """Apply rule sets to a program on a mesh.

    Raises:
      RuleError: a rule cannot be applied.
      BatchError: the batch does not divide by the data axes.
    """
    mesh = split_into_primes(shape)
    axis_rules = tuple(pair for rule in rules for pair in rule.axis_rules)
    reserved = frozenset(axis for rule in rules for axis in rule.reserves)
    claimed = {axis for rule in rules for axis in rule.claims(subject, shape, axis_rules)}
    context = RuleContext(
        subject=subject,
        mesh=mesh,
        data_parts=tuple(
            p for axis in shape.names if axis not in claimed | reserved for p in mesh.of(axis)
        ),
        tensor_parts=tuple(
            p for axis in shape.names if axis in claimed - reserved for p in mesh.of(axis)
        ),
        axis_rules=axis_rules,
    )
    own = tuple(p for axis in shape.names if axis in reserved for p in mesh.of(axis))
    decided = [rule.decide(context) for rule in rules]
    notes = [note for choices in decided for note in choices.notes]
    batch = _batch_choices(context, notes)
    chosen = _classes([*batch, *(c for d in decided for c in d.classes)], context, notes)
    storage = _storage(context, rules)
    arrays = _arrays(context, chosen, decided, storage)
    coalesced, mesh, renamed = _coalesced(mesh, arrays)
    return Layout(
        mesh=mesh,
        rules=tuple(rule.name for rule in rules),
        zero_stage=storage.stage,
        data_parts=rename((context.data_parts,), renamed)[0],
        tensor_parts=rename((context.tensor_parts + own,), renamed)[0],
        arrays=coalesced,
        notes=tuple(notes),
    )


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The ZeRO stage, and the parts of the mesh that storage is sharded over."""

    stage: int
    parts: tuple[str, ...]


def _storage(context: RuleContext, rules: Sequence[RuleSet]) -> _Storage:
    first = max(rules, key=lambda rule: rule.zero_stage)
    parts = context.data_parts
    if first.zero_axes:
        parts = tuple(p for p in parts if context.mesh.axis_of(p) in first.zero_axes)
    return _Storage(first.zero_stage, parts)


def _batch_choices(context: RuleContext, notes: list[str]) -> list[ClassChoice]:
    """Shard dimension 0 of the batch's arrays over all data parts.

    An array whose dimension 0 is another than most have (class weights, say) is not per example: it
    stays whole, with a note.

    Raises:
      BatchError: it does not divide.
    """
    analysis = context.subject.analysis
    of_part = context.mesh.refined.by_name
    degree = context.mesh.refined.shards(context.data_parts)
    positions = [
        p for p in analysis.program.with_role(Role.BATCH) if analysis.program.inputs[p].shape
    ]
    sizes = collections.Counter(analysis.program.inputs[p].shape[0] for p in positions)
    choices: dict[int, ClassChoice] = {}
    for position in positions:
        leaf = analysis.program.inputs[position]
        usual = sizes.most_common(1)[0][0]
        if leaf.shape[0] != usual and degree > 1:
            notes.append(
                f"{leaf.path} has {leaf.shape[0]} rows where the batch has {usual}: it is not "
                "sharded"
            )
            continue
        if leaf.shape[0] % degree:
            raise BatchError(_batch_message(leaf, context, degree))
        rest = context.data_parts
        for atom in analysis.leaf_dims(position)[0]:
            taken, rest = take_parts(of_part, rest, analysis.sizes[atom])
            if taken:
                why = "the batch, over the data axes"
                choices.setdefault(atom, ClassChoice(atom, taken, "data", why))
            if not rest or math.prod(of_part[p] for p in taken) != analysis.sizes[atom]:
                break
    return list(choices.values())


def _batch_message(leaf: Leaf, context: RuleContext, degree: int) -> str:
    axes = dict.fromkeys(context.mesh.axis_of(p) for p in context.data_parts)
    sizes = "*".join(f"{axis}={context.mesh.shape.size(axis)}" for axis in axes)
    smaller = leaf.shape[0] < degree
    problem = "is smaller than" if smaller else "does not divide by"
    return (
        f"the batch dimension {leaf.shape[0]} of {leaf.path or 'the batch'} {problem} the {degree} "
        f"shards of the data axes ({sizes}): use a batch of "
        f"{degree if smaller else -(-leaf.shape[0] // degree) * degree}, or a mesh with smaller "
        "data axes (a tensor axis does not shard the batch)"
    )


def _classes(
    choices: Sequence[ClassChoice], context: RuleContext, notes: list[str]
) -> dict[int, ClassChoice]:
    """The first choice for a class stands; one that meets another on the same axis is dropped."""
    subject = context.subject
    chosen: dict[int, ClassChoice] = {}
    for choice in choices:
        chosen.setdefault(choice.atom, choice)
    dropped: set[int] = set()
    for value, value_dims in enumerate(subject.analysis.dims):
        if not subject.analysis.sources[value]:
            continue
        owner: dict[str, int] = {}
        for dim in value_dims:
            for atom in dim:
                choice_or_none = chosen.get(atom)
                if choice_or_none is None or atom in dropped:
                    continue
                for part in choice_or_none.parts:
                    if owner.setdefault(part, atom) != atom:
                        dropped.add(atom)
    for atom in dropped:
        other = chosen.pop(atom)
        notes.append(
            f"{subject.names.of[atom]} is not sharded over "
            f"{context.mesh.axis_of(other.parts[0])}: some array has it beside another dimension "
            "that this axis already shards"
        )
    return chosen


def spec_of(
    dims: Sequence[Sequence[int]],
    parts: AtomParts,
    shards: Mapping[str, int],
    sizes: Mapping[int, int],
) -> Spec:
    """The spec that classes give an array.

    Within a dimension, an atom can be sharded only if those before it are sharded wholly. An atom
    that occurs twice in an array is sharded at its first occurrence.
    """  # fmt: skip
    used: set[str] = set()
    spec = []
    for dim in dims:
        entry: tuple[str, ...] = ()
        for atom in dim:
            own = tuple(p for p in parts.get(atom, ()) if p not in used)
            entry += own
            used.update(own)
            if math.prod(shards[p] for p in own) != sizes[atom]:
                break
        spec.append(entry)
    return tuple(spec)


def _arrays(
    context: RuleContext,
    chosen: Mapping[int, ClassChoice],
    decided: Sequence[Choices],
    storage: _Storage,
) -> list[ArrayLayout]:
    leaf_choices: dict[tuple[int, bool], LeafChoice] = {}
    for choices in decided:
        for choice in choices.leaves:
            leaf_choices.setdefault((choice.position, choice.storage), choice)
    analysis = context.subject.analysis
    facts = _Facts(scanned_atoms(analysis), looked_up_dims(analysis), scales_and_biases(analysis))
    return [
        _array(context, chosen, leaf_choices, position, storage, facts)
        for position in range(len(analysis.program.inputs))
    ]


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a program does with its parameters.

    Attributes:
      scanned: atoms of the dimensions along which it loops over them.
      picked: of tables by position, the dimensions that rows are picked from.
      vectors: positions of scales and biases.
    """

    scanned: frozenset[int]
    picked: Mapping[int, frozenset[int]]
    vectors: frozenset[int]


def _array(
    context: RuleContext,
    chosen: Mapping[int, ClassChoice],
    leaf_choices: Mapping[tuple[int, bool], LeafChoice],
    position: int,
    storage: _Storage,
    facts: _Facts,
) -> ArrayLayout:
    analysis: Analysis = context.subject.analysis
    leaf, dims = analysis.program.inputs[position], analysis.leaf_dims(position)
    of_part = context.mesh.refined.by_name
    compute = spec_of(dims, {a: c.parts for a, c in chosen.items()}, of_part, analysis.sizes)
    deciding = [chosen[a] for dim in dims for a in dim if a in chosen]
    rule, why = (
        (deciding[0].rule, deciding[0].why) if deciding and any(compute) else ("", "replicated")
    )
    used = leaf_choices.get((position, False))
    if used is not None:
        compute, rule, why = used.spec, used.rule, used.why
    stored = compute
    kept = leaf_choices.get((position, True))
    if kept is not None:
        stored = tuple(c + s for c, s in zip(compute, kept.spec, strict=True))
        rule, why = kept.rule, kept.why
    labels = context.subject.names.label(dims)
    if leaf.role is not Role.PARAMETER:
        return ArrayLayout(leaf, labels, compute, compute, compute, compute, rule, why)
    stage = storage.stage
    sharded = _sharded(context, facts, position, stored, storage.parts) if stage else stored
    if sharded != stored:
        rule = f"{rule}+zero{stage}" if rule else f"zero{stage}"
        why = f"{why}; " if why != "replicated" else ""
        kinds = ("optimizer state", "gradient and optimizer state", "storage")[stage - 1]
        why += f"{kinds} over {'*'.join(dict.fromkeys(map(context.mesh.axis_of, storage.parts)))}"
    elif stage and position in facts.vectors and why == "replicated":
        why = "a scale or bias, too small to be worth gathering"
    return ArrayLayout(
        leaf=leaf,
        dims=labels,
        compute=compute,
        param=sharded if stage >= 3 else stored,
        grad=sharded if stage >= 2 else stored,
        opt=sharded,
        rule=rule or "data",
        why=why,
    )


def _sharded(
    context: RuleContext, facts: _Facts, position: int, stored: Spec, parts: tuple[str, ...]
) -> Spec:
    """A parameter's spec with the parts over which ZeRO stores it; small vectors stay whole."""
    analysis: Analysis = context.subject.analysis
    shape = analysis.program.inputs[position].shape
    whole = [not facts.scanned.isdisjoint(dim) for dim in analysis.leaf_dims(position)]
    of_one_iteration = math.prod(size for size, w in zip(shape, whole, strict=True) if not w)
    if position in facts.vectors and of_one_iteration <= _SMALL:
        return stored
    shards, picked = context.mesh.refined.by_name, facts.picked.get(position)
    return _spread(shape, stored, parts, shards, whole, picked)


def _spread(
    shape: tuple[int, ...],
    spec: Spec,
    parts: tuple[str, ...],
    of_part: Mapping[str, int],
    whole: Sequence[bool],
    picked: frozenset[int] | None,
) -> Spec:
    """Add data parts to a spec: all to one dimension if one takes them, else as many as dimensions
    take.

    A dimension that is not sharded yet is preferred, so that gathering is one contiguous
    all-gather; among those, the largest. Those that are to stay `whole` get none: one iteration of
    a loop over a dimension that is cut would need what other devices hold. A table whose rows are
    `picked` is cut along its columns where they are many: rows can be looked up in such shards
    (`passes.row_lookup`).
    """
    already = {p for dim in spec for p in dim}
    parts = tuple(p for p in parts if p not in already)
    local = [
        size // math.prod(of_part[p] for p in dim) for size, dim in zip(shape, spec, strict=True)
    ]
    free = [d for d in range(len(shape)) if not whole[d]]
    order = sorted(free, key=lambda d: (bool(spec[d]), -local[d], d))
    total = math.prod(of_part[p] for p in parts)
    takes_all = [d for d in order if local[d] % total == 0 and local[d] >= total]
    if picked is not None:
        takes_all.sort(key=lambda d: d in picked or local[d] // total < _COLUMNS)
    result = list(spec)
    for d in takes_all[:1] or order:
        taken, parts = take_parts(of_part, parts, local[d])
        result[d] = result[d] + taken
    return tuple(result)


def _coalesced(
    mesh: SplitMesh, arrays: Sequence[ArrayLayout]
) -> tuple[tuple[ArrayLayout, ...], SplitMesh, Mapping[str, str]]:
    specs = [s for a in arrays for s in (a.compute, a.param, a.grad, a.opt)]
    smaller, renamed = coalesce(mesh, specs)
    done = tuple(
        dataclasses.replace(
            a,
            compute=rename(a.compute, renamed),
            param=rename(a.param, renamed),
            grad=rename(a.grad, renamed),
            opt=rename(a.opt, renamed),
        )
        for a in arrays
    )
    return done, smaller, renamed
