"""`Plan`: the layout of a program on a mesh, as data."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from autoshard import explain as explaining
from autoshard.cost import CostReport
from autoshard.errors import PlanError
from autoshard.layouts import ArrayLayout, Layout
from autoshard.memory import MemoryEstimate
from autoshard.memory_record import MemoryMappingRecord
from autoshard.mesh_shape import MeshShape, SplitMesh
from autoshard.named_dims import Analysis
from autoshard.pass_registry import PassRecord, as_tuples
from autoshard.predicted_collectives import Phase, PredictedCollective, Purpose
from autoshard.search_record import RunnerUp, SearchRecord, Verified
from autoshard.step_time import StepTime
from passes.program import Leaf, Role
from passes.spec import Spec

FORMAT = "autoshard.plan"
VERSION = 5
# Version 4 had no memory mapping.
_READABLE = (4, VERSION)
_HEAVY = ("dot_general", "conv_general_dilated", "gather", "sort", "top_k", "cumsum")


@dataclasses.dataclass(frozen=True)
class ProgramIdentity:
    """Enough of a program to recognise it.

    Attributes:
      name: the model's name.
      fingerprint: a digest of its arrays, of its products, lookups and sorts, and of which of their
        dimensions are the same. Elementwise details, which a new JAX release may rewrite, do not
        enter.
      operation_count: operations of the flat forward program.
    """

    name: str
    fingerprint: str
    operation_count: int


@dataclasses.dataclass(frozen=True)
class Alternative:
    """A layout that was considered: its rule sets, mesh and cost, or why it is impossible.

    Attributes:
      rules: names of its rule sets.
      mesh: its shape.
      score_s: estimated seconds of a step.
      memory_bytes: estimated, of a device.
      moved_bytes: estimated, sent by a device.
      verdict: `chosen`, `does not fit`, `best for its memory` (no other is both quicker and
        smaller), `impossible: ...`, or empty.
      kept: what is saved, recomputed and accumulated.
    """

    rules: tuple[str, ...]
    mesh: str
    score_s: float | None
    memory_bytes: int | None
    moved_bytes: float | None
    verdict: str
    kept: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where every array of a program lives.

    Attributes:
      program: which program.
      task: `train`, `eval` or `function`.
      topology: the machine, such as `cpu:8`.
      mesh: the mesh; an axis is split in parts where arrays need it.
      rules: names of the rule sets.
      zero_stage: 0 to 3.
      data_parts, tensor_parts: what the mesh's axes are used for.
      arrays: one entry an input of the program.
      notes: what the user should know.
      unmodelled: primitives without a sharding rule, with how often they occur.
      cost: estimates.
      alternatives: what else was considered, best first.
      jax_version: version that traced the program.
      passes: the passes that the program went through, in order, and what they did.
      search: how the plan was searched for; None where its mesh and rules were given.
      verified: what the compiler made of the best layouts, best first; empty where none were
        compiled.
      compiler_options: (name, value) to compile the program with, above those of its chip: found
        quicker by compiling with them, or by memory mapping.
      memory_mapping: how they were found; None where nothing was searched.
    """

    program: ProgramIdentity
    task: str
    topology: str
    mesh: SplitMesh
    rules: tuple[str, ...]
    zero_stage: int
    data_parts: tuple[str, ...]
    tensor_parts: tuple[str, ...]
    arrays: tuple[ArrayLayout, ...]
    notes: tuple[str, ...]
    unmodelled: tuple[tuple[str, int], ...]
    cost: CostReport
    alternatives: tuple[Alternative, ...]
    jax_version: str
    passes: tuple[PassRecord, ...] = ()
    search: SearchRecord | None = None
    verified: tuple[Verified, ...] = ()
    compiler_options: tuple[tuple[str, str], ...] = ()
    memory_mapping: MemoryMappingRecord | None = None

    @property
    def layout(self) -> Layout:
        """The layout alone."""
        return Layout(
            mesh=self.mesh,
            rules=self.rules,
            zero_stage=self.zero_stage,
            data_parts=self.data_parts,
            tensor_parts=self.tensor_parts,
            arrays=self.arrays,
            notes=self.notes,
        )

    def explain(self, width: int = 140) -> str:
        """The plan as text: what is sharded how, by which rule, and its estimated cost."""
        return explaining.explain(self, width)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` reverses it."""
        return {"format": FORMAT, "version": VERSION, **_plain(self)}

    @classmethod
    def from_json(cls, data: Any, source: str = "plan") -> "Plan":
        """Read what `to_json` wrote.

        Raises:
          PlanError: it is not a plan, or of another version, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise PlanError(f"{source} is not an autoshard plan: make one with `Plan.save`")
        if data.get("version") not in _READABLE:
            raise PlanError(
                f"{source} has plan version {data.get('version')!r} and this autoshard reads "
                f"{' and '.join(map(str, _READABLE))}: plan again with this version"
            )
        try:
            return _parse(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                f"{source} is damaged ({type(error).__name__}: {error}): plan again, or restore "
                "the file from a backup"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, one array a line, replacing the file at once."""
        data = self.to_json()
        arrays = data.pop("arrays")
        text = json.dumps(data, indent=1)
        rows = ",\n  ".join(json.dumps(row) for row in arrays)
        text = text[: text.rindex("}")].rstrip() + f',\n "arrays": [\n  {rows}\n ]\n}}\n'
        target = pathlib.Path(path)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            raise PlanError(f"cannot write the plan to {target}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Read a plan.

        Raises:
          PlanError: the file is missing, not JSON, not a plan, or damaged.
        """
        try:
            data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read the plan {path}: {error.strerror}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise PlanError(
                f"the plan {path} is not JSON ({error}): it may have been cut off; plan again"
            ) from error
        return cls.from_json(data, str(path))

    def check_task(self, task: str) -> None:
        """Raises PlanError unless the plan was made for this task."""
        if self.task != task:
            raise PlanError(
                f"this plan was made for task {self.task!r}, not {task!r}: plan again for this task"
            )

    def check_mesh(self, shapes: tuple[MeshShape, ...]) -> None:
        """Raises PlanError unless the plan's mesh is one of `shapes`."""
        count = self.mesh.shape.device_count
        is_open = len(shapes) > 1 and shapes[0].device_count == count
        if self.mesh.shape not in shapes and not is_open:
            wanted = " or ".join(f"({shape})" for shape in shapes)
            raise PlanError(
                f"this plan was made for mesh ({self.mesh.shape}) on {self.topology}, not for "
                f"{wanted}: plan again for this mesh, or use the mesh of the plan"
            )

    def check_program(self, identity: ProgramIdentity, inputs: tuple[Leaf, ...]) -> None:
        """Raises PlanError, saying what differs, unless the plan was made for this program."""
        ours = {(a.leaf.role, a.leaf.path): a.leaf for a in self.arrays}
        theirs = {(leaf.role, leaf.path): leaf for leaf in inputs}
        differences = [f"{p} is not in the plan" for (_, p) in theirs.keys() - ours.keys()]
        differences += [f"{p} is only in the plan" for (_, p) in ours.keys() - theirs.keys()]
        for key in ours.keys() & theirs.keys():
            mine, other = ours[key], theirs[key]
            if (mine.shape, mine.dtype) != (other.shape, other.dtype):
                differences.append(
                    f"{key[1]} is {mine.dtype}{list(mine.shape)} in the plan and "
                    f"{other.dtype}{list(other.shape)} in the program"
                )
        if not differences and identity.fingerprint != self.program.fingerprint:
            differences = [
                "the arrays agree, but the program's products differ "
                f"({self.program.operation_count} operations in the plan's program, "
                f"{identity.operation_count} in this one)"
            ]
        if differences:
            shown = "; ".join(sorted(differences)[:3])
            more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise PlanError(
                f"this plan was made for another program ({self.program.name}, not "
                f"{identity.name} as it is now): {shown}{more}. Plan again, or restore the model, "
                "batch shape and dtype that the plan was made for"
            )


def identify(analysis: Analysis) -> ProgramIdentity:
    """The identity of a forward program."""
    digest = hashlib.sha256()
    numbers: dict[int, int] = {}  # atoms by first occurrence: which dimensions are the same thing

    def note(value: int) -> None:
        dims = [[numbers.setdefault(a, len(numbers)) for a in d] for d in analysis.dims[value]]
        digest.update(repr((analysis.graph.shape(value), dims)).encode())

    for leaf, value in zip(analysis.program.inputs, analysis.graph.inputs, strict=True):
        digest.update(repr((leaf.path, leaf.role.value, leaf.shape, leaf.dtype)).encode())
        note(value)
    for op, rule in zip(analysis.graph.ops, analysis.rules, strict=True):
        if op.primitive in _HEAVY:
            digest.update(repr((op.primitive, str(rule), op.repeats)).encode())
            for value in (*op.inputs, *op.outputs):
                note(value)
    return ProgramIdentity(analysis.program.name, digest.hexdigest()[:32], len(analysis.graph.ops))


def make_plan(
    analysis: Analysis,
    layout: Layout,
    cost: CostReport,
    task: str,
    topology: str,
    alternatives: tuple[Alternative, ...] = (),
    identity: ProgramIdentity | None = None,
    search: SearchRecord | None = None,
) -> Plan:
    """A plan from a finished layout."""
    return Plan(
        program=identity or identify(analysis),
        task=task,
        topology=topology,
        mesh=layout.mesh,
        rules=layout.rules,
        zero_stage=layout.zero_stage,
        data_parts=layout.data_parts,
        tensor_parts=layout.tensor_parts,
        arrays=layout.arrays,
        notes=layout.notes,
        unmodelled=tuple(sorted(analysis.unmodelled.items())),
        cost=cost,
        alternatives=alternatives,
        jax_version=jax.__version__,
        search=search,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, ArrayLayout):
        leaf = value.leaf
        return {
            "path": leaf.path, "role": leaf.role.value, "dtype": leaf.dtype,
            "shape": list(leaf.shape), "dims": list(value.dims),
            "compute": _plain(value.compute), "param": _plain(value.param),
            "grad": _plain(value.grad), "opt": _plain(value.opt),
            "rule": value.rule, "why": value.why,
            **({"parts": list(leaf.parts)} if leaf.parts else {}),
        }  # fmt: skip
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _spec(data: Any) -> Spec:
    return tuple(tuple(str(part) for part in dim) for dim in data)


def _array(row: Mapping[str, Any]) -> ArrayLayout:
    shape = tuple(int(size) for size in row["shape"])
    parts = tuple(str(path) for path in row.get("parts", ()))
    leaf = Leaf(str(row["path"]), Role(row["role"]), shape, str(row["dtype"]), parts=parts)
    specs = {name: _spec(row[name]) for name in ("compute", "param", "grad", "opt")}
    dims = tuple(str(name) for name in row["dims"])
    return ArrayLayout(leaf, dims, rule=str(row["rule"]), why=str(row["why"]), **specs)


def _collective(row: Mapping[str, Any]) -> PredictedCollective:
    return PredictedCollective(
        **{
            **row,
            "purpose": Purpose(row["purpose"]),
            "phase": Phase(row["phase"]),
            "axes": tuple(row["axes"]),
        }
    )


def _parse(data: Mapping[str, Any]) -> Plan:
    mesh, cost = data["mesh"], data["cost"]
    if [len(p) for p in mesh["parts"]] != [len(s) for s in mesh["part_sizes"]]:
        raise ValueError("mesh parts and their sizes differ in number")
    shape = MeshShape(tuple(mesh["shape"]["names"]), tuple(mesh["shape"]["sizes"]))
    return Plan(
        program=ProgramIdentity(**data["program"]),
        task=data["task"],
        topology=data["topology"],
        mesh=SplitMesh(
            shape,
            tuple(tuple(parts) for parts in mesh["parts"]),
            tuple(tuple(int(size) for size in sizes) for sizes in mesh["part_sizes"]),
        ),
        rules=tuple(data["rules"]),
        zero_stage=int(data["zero_stage"]),
        data_parts=tuple(data["data_parts"]),
        tensor_parts=tuple(data["tensor_parts"]),
        arrays=tuple(_array(row) for row in data["arrays"]),
        notes=tuple(data["notes"]),
        unmodelled=tuple((str(name), int(count)) for name, count in data["unmodelled"]),
        cost=CostReport(
            flops=cost["flops"],
            memory=MemoryEstimate(**cost["memory"]),
            time=StepTime(**cost["time"]),
            collectives=tuple(_collective(row) for row in cost["collectives"]),
        ),
        alternatives=tuple(
            Alternative(**{**row, "rules": tuple(row["rules"])}) for row in data["alternatives"]
        ),
        jax_version=str(data["jax_version"]),
        passes=tuple(
            PassRecord(
                str(row["name"]),
                tuple((str(name), as_tuples(value)) for name, value in row["fields"]),
                tuple(str(note) for note in row["notes"]),
            )
            for row in data["passes"]
        ),
        search=_search(data["search"]),
        verified=tuple(Verified(**row) for row in data["verified"]),
        compiler_options=tuple(
            (str(name), str(value)) for name, value in data.get("compiler_options", ())
        ),
        memory_mapping=_memory_mapping(data.get("memory_mapping")),
    )


def _memory_mapping(data: Mapping[str, Any] | None) -> MemoryMappingRecord | None:
    return None if data is None else MemoryMappingRecord.from_json(data)


def _search(data: Mapping[str, Any] | None) -> SearchRecord | None:
    if data is None:
        return None
    others = tuple(RunnerUp(**row) for row in data["runner_ups"])
    return SearchRecord(**{**data, "runner_ups": others})
