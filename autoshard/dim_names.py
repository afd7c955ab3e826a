"""Names for classes of atoms, from what they do in the program.

    batch      dimension 0 of the batch's arrays
    sequence, height, width, channels, features    its other dimensions
    vocab      rows of a table that the batch's integers pick from, or logits of the same size
    heads      attention is independent along it (kv_heads and q_per_kv when queries share keys)
    head_dim   what attention contracts within a head
    experts    weight and activation both carry it
    embed      the residual stream: several weights produce it and several contract it
    ffn        produced by one weight and contracted by another (hidden, if nothing is embed)
    classes    produced, never contracted and never cut
    layers     a loop takes one slice of each parameter an iteration
    cache_positions    a dimension of a cache that the program writes in part

Anything else is named after the last part of the path of the parameter that carries it.
"""

import collections
import dataclasses

from autoshard import graph as graphs
from autoshard.factors import FactorRole
from autoshard.named_dims import Analysis
from autoshard.structure import ProductKind, Structure
from passes.program import Leaf, Role

GROUP = "q_per_kv"
CACHE_POSITIONS = "cache_positions"


@dataclasses.dataclass(frozen=True)
class NamedDim:
    """All classes that go by one name.

    Attributes:
      name: the name.
      atoms: the classes, one a layer for dimensions that do not leave a layer.
      sizes: the distinct sizes among them, ascending.
    """

    name: str
    atoms: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class DimNames:
    """The naming of one program: `of[atom]` is its name."""

    of: dict[int, str]
    dims: tuple[NamedDim, ...]

    def find(self, name: str) -> NamedDim | None:
        """The named dimension called `name`."""
        return next((dim for dim in self.dims if dim.name == name), None)

    def label(self, dims: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
        """One label a dimension: atom names joined by `*`, `1` for size 1."""
        return tuple("*".join(self.of[atom] for atom in dim) or "1" for dim in dims)


def _data_labels(leaf: Leaf) -> list[str]:
    rank = len(leaf.shape)
    integer = leaf.dtype.startswith(("int", "uint"))
    if rank == 4:
        return ["batch", "height", "width", "channels"]
    if rank == 3:
        return ["batch", "sequence", "features"]
    if rank == 2:
        return ["batch", "sequence" if integer else "features"]
    last = leaf.path.rsplit("/", 1)[-1]
    return ["batch", *(f"{last}.{d}" for d in range(1, rank))][:rank]


class _Namer:
    def __init__(self, analysis: Analysis, structure: Structure) -> None:
        self.analysis = analysis
        self.structure = structure
        self.names: dict[int, str] = {}

    def give(self, atoms: tuple[int, ...] | list[int], name: str) -> None:
        for atom in atoms:
            self.names.setdefault(atom, name)

    def data(self) -> None:
        for position in self.analysis.program.with_role(Role.BATCH):
            leaf = self.analysis.program.inputs[position]
            labels = _data_labels(leaf)
            for dim, label in zip(self.analysis.leaf_dims(position), labels, strict=True):
                for part, atom in enumerate(dim):
                    self.names.setdefault(atom, label if part == 0 else f"{label}.{part}")

    def attention(self) -> None:
        carried = self.structure.parameter_atoms - set(self.names)
        groups = self.structure.group_atoms
        heads = [
            a
            for i in self.structure.interactions
            for a in i.shared
            if a in carried and a not in groups
        ]
        self.give(sorted(groups), GROUP)
        grouped = bool(groups)
        for interaction in self.structure.interactions:
            if not set(interaction.shared) & set(heads):
                continue
            inside = [a for a in interaction.contracted if a in carried]
            free = [a for a in interaction.free if a in carried and a not in heads]
            if inside:
                self.give(inside, "head_dim")
                grouped = grouped or bool(free)
                self.give(free, GROUP)
            elif self._rotated(interaction.op):
                grouped = grouped or bool(free)
                self.give(free, GROUP)
            else:
                self.give(free, "head_dim")
        self.give(heads, "kv_heads" if grouped else "heads")
        self._rest_of_heads()

    def _rotated(self, op: int) -> bool:
        """Scores after rotary positions contract what was cut and joined, so no weight has it."""
        contracted = next(i.contracted for i in self.structure.interactions if i.op == op)
        return bool(contracted) and not any(
            atom in self.structure.data_atoms or self.names.get(atom) == CACHE_POSITIONS
            for atom in contracted
        )

    def _rest_of_heads(self) -> None:
        """Rotary cuts a head in halves and so hides head_dim from the scores: it follows heads."""
        followers = {"heads", "kv_heads", GROUP}
        for position in self.analysis.program.with_role(Role.PARAMETER):
            flat = [atom for dim in self.analysis.leaf_dims(position) for atom in dim]
            if any(self.names.get(atom) == "head_dim" for atom in flat):
                continue  # what else stands behind the heads tells q, k and v apart
            after = False
            for atom in flat:
                if self.names.get(atom) in followers:
                    after = True
                elif after and atom not in self.names and not self._stream(atom):
                    self.names[atom] = "head_dim"
                    break

    def _stream(self, atom: int) -> bool:
        produced = sum(atom in p.produced for p in self.structure.products)
        contracted = sum(atom in p.contracted for p in self.structure.products)
        return produced >= 2 and contracted >= 2

    def products(self) -> None:
        products = self.structure.products
        produced: collections.Counter[int] = collections.Counter()
        contracted: collections.Counter[int] = collections.Counter()
        for product in products:
            self.give(product.shared, "experts")
            if product.kind is ProductKind.LOOKUP:
                self.give(product.contracted, "vocab")
            produced.update(product.produced)
            contracted.update(product.contracted)
        vocab_sizes = {self.analysis.sizes[a] for a, n in self.names.items() if n == "vocab"}
        stream = [a for a in produced if produced[a] >= 2 and contracted[a] >= 2]
        self.give(stream, "embed")
        self.give([a for a in produced if contracted[a]], "ffn" if stream else "hidden")
        cut = self._cut()
        for atom in produced:
            if self.analysis.sizes[atom] in vocab_sizes:
                self.give([atom], "vocab")
            elif atom not in cut:
                self.give([atom], "classes")
        windows = [p for p in products if p.kind is ProductKind.CONVOLUTION]
        self.give([a for p in windows for a in p.contracted], "window")
        self.give(list(contracted), "features")

    def _cut(self) -> set[int]:
        """Atoms that some operation blocks: what splits a fused product is no class to predict."""
        found: set[int] = set()
        for index, rule in enumerate(self.analysis.rules):
            if any(factor.role is FactorRole.BLOCKED for factor in rule.factors):
                bound = self.analysis.factor_dims(index)
                for factor, atoms in zip(rule.factors, bound, strict=True):
                    if factor.role is FactorRole.BLOCKED:
                        found.update(atoms)
        return found

    def layers(self) -> None:
        for op in self.analysis.graph.ops:
            if op.primitive == graphs.SCAN_XS:
                stacked = self.analysis.dims[op.inputs[0]][0]
                self.give([a for a in stacked if a in self.structure.parameter_atoms], "layers")

    def positions(self) -> None:
        """What is written into a cache in part."""
        leaves = self.analysis.program.with_role(Role.CACHE)
        kept = {a for p in leaves for dim in self.analysis.leaf_dims(p) for a in dim}
        for index, op in enumerate(self.analysis.graph.ops):
            if kept and op.primitive == "dynamic_update_slice":
                factors = self.analysis.rules[index].factors
                bound = self.analysis.factor_dims(index)
                for factor, atoms in zip(factors, bound, strict=True):
                    if factor.role is not FactorRole.PARALLEL:
                        self.give([a for a in atoms if a in kept], CACHE_POSITIONS)

    def rest_of_cache(self) -> None:
        """A cache's dimensions that no weight shows: rotary hides the width of a head."""
        leaves = self.analysis.program.with_role(Role.CACHE)
        for op in self.analysis.graph.ops:
            if leaves and op.primitive == graphs.SCAN_YS:
                self.give(self.analysis.dims[op.outputs[0]][0], "layers")
        for position in leaves:
            after = False  # the dimension of heads
            for dim in self.analysis.leaf_dims(position):
                if after:
                    self.give(dim, "head_dim")
                after = after or any(self.names.get(a) in ("heads", "kv_heads") for a in dim)

    def others(self) -> None:
        program = self.analysis.program
        for position in range(len(program.inputs)):
            leaf = program.inputs[position]
            base = leaf.path.rsplit("/", 1)[-1] or "input"
            for d, dim in enumerate(self.analysis.leaf_dims(position)):
                self.give(dim, f"{base}.{d}")


def name_dims(analysis: Analysis, structure: Structure) -> DimNames:
    """Name every class that an input of the program carries; classes inside it are `_<atom>`."""
    namer = _Namer(analysis, structure)
    namer.data()
    namer.positions()
    namer.attention()
    namer.products()
    namer.layers()
    namer.rest_of_cache()
    namer.others()
    names = {atom: namer.names.get(atom, f"_{atom}") for atom in analysis.sizes}
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for atom, name in names.items():
        if not name.startswith("_"):
            groups[name].append(atom)
    dims = tuple(
        NamedDim(name, tuple(atoms), tuple(sorted({analysis.sizes[a] for a in atoms})))
        for name, atoms in groups.items()
    )
    return DimNames(names, dims)
