"""What a program is built of: products with weights, table lookups, attention.

Read off the factor maps and the data flow alone. Nothing here looks at a parameter's name.
"""

import dataclasses
import enum
from collections.abc import Mapping

from autoshard.factors import FactorRole
from autoshard.named_dims import Analysis, Source
from passes.program import Role


class ProductKind(enum.Enum):
    """How a weight enters: by contraction, by a window, or by picking rows."""

    MATMUL = "matmul"
    CONVOLUTION = "convolution"
    LOOKUP = "lookup"


_KINDS = {
    "dot_general": ProductKind.MATMUL,
    "conv_general_dilated": ProductKind.CONVOLUTION,
    "gather": ProductKind.LOOKUP,
}


@dataclasses.dataclass(frozen=True)
class Product:
    """A weight applied to an activation.

    Attributes:
      kind: how.
      op: index of the operation in the graph.
      contracted: atoms summed over (for a lookup, the rows picked from), in the weight's order.
      produced: atoms that the weight alone brings to the result, in the weight's order.
      shared: atoms that weight and activation both carry (experts).
      weight_size: elements of the weight operand.
    """

    kind: ProductKind
    op: int
    contracted: tuple[int, ...]
    produced: tuple[int, ...]
    shared: tuple[int, ...]
    weight_size: int


@dataclasses.dataclass(frozen=True)
class Interaction:
    """A product of two activations, as attention has two of.

    Attributes:
      op: index of the operation in the graph.
      shared: atoms that both operands and the result carry.
      contracted: atoms summed over.
      free: atoms that one operand brings to the result.
    """

    op: int
    shared: tuple[int, ...]
    contracted: tuple[int, ...]
    free: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Structure:
    """The parts of a program, in its order.

    Attributes:
      products: weights applied to activations.
      interactions: products of two activations.
      parameter_atoms: atoms that some parameter carries.
      batch_atoms: atoms of dimension 0 of the batch's arrays.
      data_atoms: atoms of all dimensions of the batch's arrays.
      majors: for each atom, those that stand before it in some dimension.
    """

    products: tuple[Product, ...]
    interactions: tuple[Interaction, ...]
    parameter_atoms: frozenset[int]
    batch_atoms: tuple[int, ...]
    data_atoms: frozenset[int]
    majors: Mapping[int, frozenset[int]]

    @property
    def head_atoms(self) -> frozenset[int]:
        """Atoms over which attention is a batch of independent problems, and that weights carry.

        Without `group_atoms`, which can only be sharded behind these.
        """
        return self._independent - self.group_atoms

    @property
    def group_atoms(self) -> frozenset[int]:
        """Those that stand behind another: queries that share repeated keys."""
        heads = self._independent
        return frozenset(atom for atom in heads if self.majors.get(atom, frozenset()) & heads)

    @property
    def _independent(self) -> frozenset[int]:
        return frozenset(
            atom
            for interaction in self.interactions
            for atom in interaction.shared
            if atom in self.parameter_atoms and atom not in self.data_atoms
        )


def _in_order(analysis: Analysis, value: int, atoms: set[int]) -> tuple[int, ...]:
    flat = [atom for dim in analysis.dims[value] for atom in dim if atom in atoms]
    return tuple(dict.fromkeys(flat))


def _weight_operand(analysis: Analysis, op_index: int) -> int | None:
    """Which operand of a product is the weight, or None."""
    inputs = analysis.graph.ops[op_index].inputs[:2]
    sources = [analysis.sources[v] for v in inputs]
    for side in (1, 0):
        if sources[side] == Source.PARAMETER and sources[1 - side] & Source.BATCH:
            return side
    return None


def _product(analysis: Analysis, op_index: int, kind: ProductKind, side: int) -> Product:
    op, rule = analysis.graph.ops[op_index], analysis.rules[op_index]
    bound = analysis.factor_dims(op_index)
    weight = op.inputs[side]
    summed, brought, both = set[int](), set[int](), set[int]()
    for factor, info in enumerate(rule.factors):
        if not rule.positions(factor, [rule.operands[side]]):
            continue
        in_other = bool(rule.positions(factor, [rule.operands[1 - side]]))
        if info.role in (FactorRole.CONTRACTED, FactorRole.INDEXED):
            summed.update(bound[factor])
        elif info.role is FactorRole.PARALLEL:
            (both if in_other else brought).update(bound[factor])
    return Product(
        kind=kind,
        op=op_index,
        contracted=_in_order(analysis, weight, summed),
        produced=_in_order(analysis, weight, brought),
        shared=_in_order(analysis, weight, both),
        weight_size=_size(analysis, weight),
    )


def _size(analysis: Analysis, value: int) -> int:
    size = 1
    for extent in analysis.graph.shape(value):
        size *= extent
    return size


def _interaction(analysis: Analysis, op_index: int) -> Interaction:
    rule = analysis.rules[op_index]
    bound = analysis.factor_dims(op_index)
    shared, summed, free = list[int](), list[int](), list[int]()
    for factor, info in enumerate(rule.factors):
        operands = {a for a, _ in rule.positions(factor, rule.operands)}
        if info.role is FactorRole.CONTRACTED:
            summed.extend(bound[factor])
        elif len(operands) > 1:
            shared.extend(bound[factor])
        else:
            free.extend(bound[factor])
    return Interaction(op_index, tuple(shared), tuple(summed), tuple(free))


def find_structure(analysis: Analysis) -> Structure:
    """Collect the products and interactions of a forward program."""
    program, graph = analysis.program, analysis.graph
    products, interactions = [], []
    for index, op in enumerate(graph.ops):
        kind = _KINDS.get(op.primitive)
        if kind is None:
            continue
        side = _weight_operand(analysis, index)
        if kind is ProductKind.LOOKUP:
            if side == 0:
                products.append(_product(analysis, index, kind, 0))
        elif side is not None:
            products.append(_product(analysis, index, kind, side))
        elif all(analysis.sources[v] & Source.BATCH for v in op.inputs[:2]):
            interactions.append(_interaction(analysis, index))
    parameters = program.with_role(Role.PARAMETER)
    batch = program.with_role(Role.BATCH)
    return Structure(
        products=tuple(products),
        interactions=tuple(interactions),
        parameter_atoms=frozenset(
            atom for i in parameters for dim in analysis.leaf_dims(i) for atom in dim
        ),
        batch_atoms=tuple(
            dict.fromkeys(atom for i in batch for dim in analysis.leaf_dims(i)[:1] for atom in dim)
        ),
        data_atoms=frozenset(atom for i in batch for dim in analysis.leaf_dims(i) for atom in dim),
        majors=analysis.majors,
    )
