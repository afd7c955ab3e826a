"""The space of decisions: what may be sharded, over which meshes, kept how.

`neighbours` of a decision differ in one choice. All decisions are reached from any of them, and
`everything` lists them for the oracle.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from autoshard.dim_names import CACHE_POSITIONS
from autoshard.mesh_shape import MeshShape, prime_factors
from autoshard.rule_sets.assigned import Unit
from autoshard.rule_sets.base import TENSOR_AXIS_NAMES, Subject, is_data_axis
from autoshard.rule_sets.redco import sharded_atoms
from autoshard.search.decision import AS_WRITTEN, Decision, MemoryChoice
from autoshard.search.variants import POLICIES
from autoshard.sharded_program import STAGE
from passes.program import Role

# Dimensions that an axis is never given: rows are the data axes' own, an iteration of a loop needs
# its slice whole, and what attention contracts within a head would sum all scores over devices.
_NEVER = frozenset({"batch", "layers", "head_dim", "q_per_kv", "window"})
_GROUPED, _BEHIND = "kv_heads", "q_per_kv"
_HEADS = frozenset({"heads", _GROUPED})


@dataclasses.dataclass(frozen=True)
class Space:
    """All decisions about a program on a machine.

    Attributes:
      units: what may be sharded.
      shapes: mesh shapes.
      conflicts: pairs of labels that some array has side by side: no axis takes both.
      column_units: labels of what Redco's rules shard.
      trains: whether storage of gradients and optimizer state is a choice.
      memories: choices of what is kept.
      taken_axes: axes that the user's own rules or passes use.
      stage_counts: stages that a pipeline may have; none where it is not the search's to choose.
    """

    units: tuple[Unit, ...]
    shapes: tuple[MeshShape, ...]
    conflicts: frozenset[frozenset[str]]
    column_units: frozenset[str]
    trains: bool
    memories: tuple[MemoryChoice, ...]
    taken_axes: frozenset[str] = frozenset()
    stage_counts: frozenset[int] = frozenset()

    def stages(self, shape: MeshShape) -> int:
        """Stages of a pipeline on a mesh; 1 where an axis `stage` is none of the search's."""
        size = shape.by_name.get(STAGE, 1)
        return size if size in self.stage_counts else 1

    @property
    def by_label(self) -> dict[str, Unit]:
        """Units by their labels."""
        return {unit.label: unit for unit in self.units}

    def tensor_axes(self, shape: MeshShape) -> tuple[str, ...]:
        """Axes of a mesh that may shard units: by name, else those not for data."""
        taken = self.taken_axes | ({STAGE} if self.stages(shape) > 1 else set())
        wide = [name for name, size in shape.by_name.items() if size > 1 and name not in taken]
        named = [n for n in wide if n.lower() in TENSOR_AXIS_NAMES or n == "expert"]
        return tuple(named or [n for n in wide if not is_data_axis(n)])

    def data_axes(self, shape: MeshShape, uses: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """Axes of more than one device that shard the batch under some uses."""
        used = {axis for _, axis in uses} | self.taken_axes
        if self.stages(shape) > 1:
            used.add(STAGE)
        return tuple(n for n, size in shape.by_name.items() if size > 1 and n not in used)

    def seeds(self) -> Iterator[Decision]:
        """Where to begin: data parallelism and Redco's layout on each mesh, stored whole or not."""
        for shape in self.shapes:
            axes = self.tensor_axes(shape)
            columns = [label for label in self.by_label if label in self.column_units]
            layouts = [tuple(sorted((label, axes[-1]) for label in columns))] if axes else []
            if "expert" in axes and "experts" in self.by_label:
                rest = [label for label in columns if label != "experts"]
                spread = [(label, axes[-1]) for label in rest if axes[-1] != "expert"]
                layouts = [tuple(sorted([("experts", "expert"), *spread]))]
            if not axes or len(self.shapes) == 1:
                layouts.append(())
            for uses in layouts:
                for stage in (0, 3) if self.trains else (0,):
                    for memory in self._first_memories(shape):
                        yield self._tidy(
                            Decision(shape, uses, stage, (), memory, self.stages(shape))
                        )

    def _first_memories(self, shape: MeshShape) -> tuple[MemoryChoice, ...]:
        """The plainest; in a pipeline with the most microbatches, so that stages wait least."""
        if self.stages(shape) == 1:
            return self.memories[:1]
        return self._of_pipelines()[-1:]

    def _of_pipelines(self) -> tuple[MemoryChoice, ...]:
        """Those with microbatches, fewest first; a stage computes its layers again in any case."""
        return tuple(m for m in self.memories if m.microbatches > 1 and m.remat == AS_WRITTEN)

    def neighbours(self, at: Decision) -> Iterator[Decision]:
        """Decisions that differ in one choice."""
        yield from self._other_memories(at)
        yield from self._other_storage(at)
        yield from self._other_uses(at)
        yield from self._other_shapes(at)

    def _other_memories(self, at: Decision) -> Iterator[Decision]:
        for memory in self.memories:
            alike = (memory.remat == at.memory.remat) != (
                memory.microbatches == at.memory.microbatches
            )
            runs = at.stages == 1 or memory in self._of_pipelines()
            if memory != at.memory and alike and runs:
                yield dataclasses.replace(at, memory=memory)

    def _other_storage(self, at: Decision) -> Iterator[Decision]:
        for stage, axes in self._storages(at.shape, at.uses):
            if (stage, axes) != (at.zero, at.zero_axes):
                yield dataclasses.replace(at, zero=stage, zero_axes=axes)

    def _storages(
        self, shape: MeshShape, uses: Sequence[tuple[str, str]]
    ) -> list[tuple[int, tuple[str, ...]]]:
        axes = self.data_axes(shape, uses)
        if not self.trains or not axes:
            return [(0, ())]
        inner = [(axes[-1],)] if len(axes) > 1 else []
        return [(0, ()), *((stage, over) for stage in (1, 2, 3) for over in ((), *inner))]

    def _other_uses(self, at: Decision) -> Iterator[Decision]:
        axes = self.tensor_axes(at.shape)
        own = dict(at.uses)
        for unit in self.units:
            for axis in (None, *axes):
                if own.get(unit.label) == axis:
                    continue
                changed = {k: v for k, v in own.items() if k != unit.label}
                if axis is not None:
                    for other, place in own.items():
                        if place == axis and frozenset((other, unit.label)) in self.conflicts:
                            changed.pop(other, None)
                    changed[unit.label] = axis
                yield self._tidy(dataclasses.replace(at, uses=tuple(sorted(changed.items()))))

    def _other_shapes(self, at: Decision) -> Iterator[Decision]:
        """Meshes between which a prime factor has gone from one axis to another."""
        for shape in self.shapes:
            staged = self.stages(shape) > 1
            if staged and at.memory not in self._of_pipelines():
                continue
            if shape != at.shape and _one_factor_apart(shape, at.shape):
                axes = self.tensor_axes(shape)
                uses = tuple((label, axis) for label, axis in at.uses if axis in axes)
                if axes and not uses:
                    uses = tuple(sorted((label, axes[-1]) for label in self.column_units))
                made = dataclasses.replace(at, shape=shape, uses=uses)
                yield self._tidy(dataclasses.replace(made, stages=self.stages(shape)))

    def _tidy(self, made: Decision) -> Decision:
        """A decision whose storage is sharded over axes that are still the batch's."""
        if (made.zero, made.zero_axes) in self._storages(made.shape, made.uses):
            return made
        stage = made.zero if self.data_axes(made.shape, made.uses) else 0
        return dataclasses.replace(made, zero=stage, zero_axes=())

    def everything(self) -> Iterator[Decision]:
        """Every decision: for small programs only."""
        for shape in self.shapes:
            axes = self.tensor_axes(shape)
            for places in itertools.product((None, *axes), repeat=len(self.units)):
                pairs = zip(self.units, places, strict=True)
                uses = tuple(sorted((u.label, a) for u, a in pairs if a is not None))
                if any(
                    a == b and frozenset((x, y)) in self.conflicts
                    for (x, a), (y, b) in itertools.combinations(uses, 2)
                ):
                    continue
                for stage, over in self._storages(shape, uses):
                    for memory in self.memories:
                        if self.stages(shape) == 1 or memory in self._of_pipelines():
                            yield Decision(shape, uses, stage, over, memory, self.stages(shape))


def _one_factor_apart(shape: MeshShape, other: MeshShape) -> bool:
    sizes, others = shape.by_name, other.by_name
    names = dict.fromkeys((*sizes, *others))
    ratios = [(sizes.get(n, 1), others.get(n, 1)) for n in names]
    changed = [(a, b) for a, b in ratios if a != b]
    if len(changed) != 2:
        return False
    (a, b), _ = changed
    larger, smaller = max(a, b), min(a, b)
    return larger % smaller == 0 and len(prime_factors(larger // smaller)) == 1


def find_units(subject: Subject, forbidden: Sequence[str] = ()) -> tuple[Unit, ...]:
    """What the search may shard: named dimensions of parameters, those that products meet.

    Classes of one name that differ in size are decided apart. Where some array carries two classes
    of one name side by side (hidden layers of a perceptron), so are those that Redco's rules shard.
    """
    columns = sharded_atoms(subject)
    structure = subject.structure
    multiplied = {
        a for p in structure.products for a in (*p.contracted, *p.produced, *p.shared)
    } | structure.head_atoms
    carried = structure.parameter_atoms & multiplied
    behind = subject.names.find(_BEHIND)
    units = []
    for dim in subject.names.dims:
        atoms = tuple(a for a in dim.atoms if a in carried)
        if dim.name in _NEVER or dim.name in forbidden or not atoms:
            continue
        spills: tuple[tuple[int, tuple[int, ...]], ...] = ()
        if dim.name == _GROUPED and behind is not None:
            majors = subject.analysis.majors
            spills = tuple(
                (a, tuple(b for b in behind.atoms if a in majors.get(b, ()))) for a in atoms
            )
        units += _split(subject, dim.name, atoms, spills, columns)
        if dim.name in _HEADS and CACHE_POSITIONS not in forbidden:
            units += _over_cache(subject, dim.name, atoms)
    positions = subject.names.find(CACHE_POSITIONS)
    if positions is not None and CACHE_POSITIONS not in forbidden:
        read = _contracted(subject)
        atoms = tuple(a for a in positions.atoms if a in read)
        units += [Unit(CACHE_POSITIONS, atoms)] if atoms else []
    return tuple(units)


def _contracted(subject: Subject) -> frozenset[int]:
    """What products of two activations sum over: in attention, positions that are read."""
    return frozenset(a for i in subject.structure.interactions for a in i.contracted)


def _over_cache(subject: Subject, name: str, heads: Sequence[int]) -> list[Unit]:
    """Heads over an axis, and what they leave of it over the positions of the cache they read.

    The scores are then summed over those devices, and the cache stays where it is; queries that
    share keys stay together.
    """
    analysis, read = subject.analysis, _contracted(subject)
    behind: dict[int, tuple[int, ...]] = {}
    for position in analysis.program.with_role(Role.CACHE):
        flat = [a for dim in analysis.leaf_dims(position) for a in dim]
        for head in (a for a in flat if a in heads):
            own = tuple(a for a in flat if a in read and subject.names.of[a] == CACHE_POSITIONS)
            behind.setdefault(head, own)
    spills = tuple((head, own) for head, own in behind.items() if own)
    return [Unit(f"{name}+{CACHE_POSITIONS}", tuple(heads), spills)] if spills else []


def _split(
    subject: Subject,
    name: str,
    atoms: tuple[int, ...],
    spills: tuple[tuple[int, tuple[int, ...]], ...],
    columns: frozenset[int],
) -> list[Unit]:
    """The units of one name: one, but where its classes differ in size or stand side by side."""
    apart = _side_by_side(subject, atoms, atoms)
    groups: dict[tuple[int, bool], list[int]] = {}
    for atom in atoms:
        key = (subject.analysis.sizes[atom], apart and atom in columns)
        groups.setdefault(key, []).append(atom)
    if len(groups) == 1:
        return [Unit(name, atoms, spills)]
    numbered = enumerate(sorted(groups.items(), key=lambda item: (-item[0][0], not item[0][1])), 1)
    return [
        Unit(f"{name}/{n}", tuple(group), tuple(x for x in spills if x[0] in group))
        for n, (_, group) in numbered
    ]


def find_conflicts(subject: Subject, units: Sequence[Unit]) -> frozenset[frozenset[str]]:
    """Pairs of units that some array carries side by side, or that have a class in common."""
    return frozenset(
        frozenset((a.label, b.label))
        for a, b in itertools.combinations(units, 2)
        if _side_by_side(subject, a.atoms, b.atoms) or not set(a.atoms).isdisjoint(b.atoms)
    )


def _side_by_side(subject: Subject, first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether some parameter has two different classes, one of each."""
    analysis = subject.analysis
    ours, theirs = set(first), set(second)
    for position in range(len(analysis.program.inputs)):
        dims = [set(dim) for dim in analysis.leaf_dims(position)]
        for one, other in itertools.permutations(dims, 2):
            if any(a != b for a in one & ours for b in other & theirs):
                return True
    return False


def column_units(subject: Subject, units: Sequence[Unit]) -> frozenset[str]:
    """Units that Redco's rules would shard; of two with a class in common, the first."""
    columns = sharded_atoms(subject)
    found: list[str] = []
    taken: set[int] = set()
    for unit in units:
        if taken.isdisjoint(unit.atoms) and not columns.isdisjoint(unit.atoms):
            found.append(unit.label)
            taken.update(unit.atoms)
    return frozenset(found)


def open_shapes(
    count: int,
    slices: int,
    axes: Sequence[str],
    forbidden: Sequence[str],
    stages: Sequence[int] = (),
) -> tuple[MeshShape, ...]:
    """Meshes of `count` devices; only `data` crosses slices, and `fsdp` is inside of `data`.

    Args:
      count: devices.
      slices: of the machine.
      axes: names besides `data`, such as `fsdp`, `expert`, `model`.
      forbidden: those that are not to be wider than one device.
      stages: of pipelines, an axis of their own, outermost.
    """
    if stages and slices == 1 and STAGE not in forbidden:
        plain = open_shapes(count, slices, axes, forbidden)
        staged = [
            MeshShape((STAGE, *shape.names), (s, *shape.sizes))
            for s in stages
            if count % s == 0
            for shape in open_shapes(count // s, slices, axes, forbidden)
        ]
        return (*plain, *staged)
    wide = [name for name in axes if name not in forbidden]
    rest: list[tuple[int, tuple[int, ...]]] = [(count, ())]
    for _ in wide:
        rest = [
            (left // size, (*sizes, size))
            for left, sizes in rest
            for size in range(1, left + 1)
            if left % size == 0
        ]
    shapes = []
    for left, sizes in rest:
        if left % slices:
            continue
        own = dict(zip(wide, sizes, strict=True))
        if left == 1 and own.get("fsdp", 1) > 1:
            continue  # the same as `data` alone
        extra = [(n, s) for n, s in own.items() if s > 1 and n != "model"]
        names = ("data", *(n for n, _ in extra), "model")
        shapes.append(MeshShape(names, (left, *(s for _, s in extra), own.get("model", 1))))
    return tuple(dict.fromkeys(shapes))


def memory_choices(
    saving: bool, counts: Sequence[int], rows: int, choose: bool
) -> tuple[MemoryChoice, ...]:
    """What a step may keep, plainest first.

    Args:
      saving: whether there are loops or regions whose policy can be chosen.
      counts: of microbatches.
      rows: of the batch.
      choose: whether anything is to be chosen.
    """
    if not choose:
        return (MemoryChoice(),)
    policies = (AS_WRITTEN, *POLICIES) if saving else (AS_WRITTEN,)
    fitting = [n for n in counts if rows % n == 0] or [1]
    return tuple(MemoryChoice(policy, count) for count in fitting for policy in policies)
