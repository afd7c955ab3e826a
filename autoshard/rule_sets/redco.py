"""Redco's two rules for tensor parallelism, decided from the program.

"Redco: A Lightweight Tool to Automate Distributed Training of LLMs on Any GPU/TPUs" derives
Megatron-style layouts from two rules: (1) consecutive matrix products alternate between splitting
the output (column) and the input (row) of their weight; (2) the products that feed attention heads
are split on their output, by heads, and the one that leaves the heads on its input.

Here a product's weight links two sets of named dimensions, what it contracts and what it produces;
rule 1 says that exactly one of the two is sharded. Attention heads are sharded first (rule 2;
without attention, the residual stream is kept whole first), the rest follows by propagation along
shared dimensions, and what nothing reaches starts with a column split. A table lookup is a product
with one-hot rows. Names of parameters play no part, nor does their order.
"""

import dataclasses

from autoshard.mesh_shape import MeshShape
from autoshard.rule_sets.base import (
    AxisRules,
    Choices,
    ClassChoice,
    RuleContext,
    RuleSet,
    Subject,
    deal_out,
    tensor_axis,
)
from autoshard.structure import Product

_WHY_HEADS = "rule 2: attention is independent along heads"
_WHY_COLUMN = "rule 1: produced by a column-split product, contracted by the next"
_WHY_ROW = "rule 1: contracted by a row-split product"


@dataclasses.dataclass
class _Colouring:
    """Which atoms are sharded (True) or kept whole (False), and why."""

    subject: Subject
    sharded: dict[int, bool] = dataclasses.field(default_factory=dict)
    why: dict[int, str] = dataclasses.field(default_factory=dict)

    def side(self, atoms: tuple[int, ...]) -> bool | None:
        states = [self.sharded.get(atom) for atom in atoms]
        if True in states:
            return True
        return False if False in states else None

    def keep(self, atoms: tuple[int, ...]) -> None:
        for atom in atoms:
            self.sharded.setdefault(atom, False)

    def shard(self, atoms: tuple[int, ...], why: str) -> None:
        """Shard the side's first atom that always leads its dimension (or just the first)."""
        majors = self.subject.analysis.majors
        free = [a for a in atoms if not majors.get(a) and self.sharded.get(a) is None]
        for atom in (free or [a for a in atoms if self.sharded.get(a) is None])[:1]:
            self.sharded[atom] = True
            self.why[atom] = why

    def step(self, product: Product) -> bool:
        """Apply rule 1 to one product; returns whether anything was decided."""
        contracted, produced = self.side(product.contracted), self.side(product.produced)
        if produced is None and contracted is not None and product.produced:
            self.keep(product.produced) if contracted else self.shard(product.produced, _WHY_COLUMN)
            return True
        if contracted is None and produced is not None and product.contracted:
            self.keep(product.contracted) if produced else self.shard(product.contracted, _WHY_ROW)
            return True
        return False

    def propagate(self, products: tuple[Product, ...]) -> None:
        """Rule 1 to a fixed point; unreached components start with a column split."""
        while True:
            while [p for p in products if self.step(p)]:
                pass
            start = next(
                (p for p in products if self.side(p.produced) is None and p.produced), None
            )
            if start is None:
                return
            self.shard(start.produced, _WHY_COLUMN)


def _colour(subject: Subject) -> _Colouring:
    colouring = _Colouring(subject)
    for atom in sorted(subject.structure.head_atoms):
        colouring.sharded[atom] = True
        colouring.why[atom] = _WHY_HEADS
    if not colouring.sharded:
        colouring.keep(tuple(a for a in subject.names.of if subject.names.of[a] == "embed"))
    colouring.propagate(subject.structure.products)
    return colouring


def sharded_atoms(subject: Subject) -> frozenset[int]:
    """The classes that the two rules shard."""
    return frozenset(atom for atom, sharded in _colour(subject).sharded.items() if sharded)


def _spill(context: RuleContext, colouring: _Colouring) -> dict[int, tuple[int, ...]]:
    """For each sharded atom, the atoms after it in a weight's dimension that may take what it
    leaves.

    With fewer key-value heads than devices the query heads of a group are split further. What
    attention contracts within a head never is: that would all-reduce the scores.
    """
    names, majors = context.subject.names, context.subject.analysis.majors
    following: dict[int, tuple[int, ...]] = {}
    for product in context.subject.structure.products:
        for side in (product.contracted, product.produced):
            for position, atom in enumerate(side):
                if not colouring.sharded.get(atom):
                    continue
                rest = tuple(
                    a
                    for a in side[position + 1 :]
                    if names.of[a] == "q_per_kv" and atom in majors.get(a, ())
                )
                if len(rest) > len(following.get(atom, ())):
                    following[atom] = rest
    return following


def _decide(context: RuleContext) -> Choices:
    subject = context.subject
    colouring = _colour(subject)
    spill = _spill(context, colouring)
    choices, notes = [], []
    degree = context.mesh.refined.shards(context.tensor_parts)
    axis = context.mesh.axis_of(context.tensor_parts[0]) if context.tensor_parts else ""
    for atom, sharded in colouring.sharded.items():
        if not sharded or degree == 1:
            continue
        dealt, rest = deal_out(context, (atom, *spill.get(atom, ())), context.tensor_parts)
        choices += [ClassChoice(a, parts, "redco", colouring.why[atom]) for a, parts in dealt]
        if rest and not subject.analysis.majors.get(atom):
            notes.append(
                _indivisible(subject, atom, axis, degree, len(rest) == len(context.tensor_parts))
            )
    notes.extend(_contradictions(subject, colouring))
    return Choices(tuple(choices), (), tuple(dict.fromkeys(notes)))


def _indivisible(subject: Subject, atom: int, axis: str, degree: int, wholly: bool) -> str:
    name, size = subject.names.of[atom], subject.analysis.sizes[atom]
    padded = -(-size // degree) * degree
    remedy = f"pad to {padded}" + (" (pad_vocab)" if name == "vocab" else "")
    effect = "stays replicated" if wholly else "is sharded partly and replicated over the rest"
    return (
        f"{name} dimension {size} does not divide by mesh axis {axis}={degree}: it {effect}; "
        f"{remedy} or use a smaller {axis}"
    )


def _contradictions(subject: Subject, colouring: _Colouring) -> list[str]:
    notes = []
    for product in subject.structure.products:
        if (
            colouring.side(product.contracted) is False
            and colouring.side(product.produced) is False
        ):
            labels = [subject.names.of[a] for a in (*product.contracted, *product.produced)]
            notes.append(
                f"a weight over {' x '.join(labels)} joins two dimensions that other products keep "
                "whole: it stays replicated over the tensor axis"
            )
    return notes


def redco(axis: str | None = None) -> RuleSet:
    """Redco's rules over `axis` (default: the axis called model or tensor, else the last)."""

    def claims(subject: Subject, shape: MeshShape, rules: AxisRules) -> frozenset[str]:
        del subject, rules
        return frozenset([tensor_axis(shape, "redco", axis)])

    return RuleSet("redco", _decide, claims)
