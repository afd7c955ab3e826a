"""Seconds, FLOPs and HBM bytes of an equation on one device of a mesh, by a roofline.

matrix product    the greater of FLOPs at the sustained rate and traffic, and collectives:
                  a reduction over the axes that shard a contracted dimension, a gather of an
                  operand that is sharded where its partner or the result cannot be
kernel            the same, by the kernel's own cost estimate
reduction, copy   traffic of what is read and made
elementwise       vector work only: chains are fused into what reads them
views, casts      nothing; nor transposes, which layouts of operands and results take up
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from passes import ir
from passes.hlo.collective_time import collective_time
from passes.hlo.machine import MachineModel, hlo_dtype
from passes.program import Leaf, Role
from passes.spec import Spec

_FREE = frozenset(
    "reshape transpose slice broadcast_in_dim squeeze expand_dims iota convert_element_type name "
    "stop_gradient sharding_constraint copy reduce_precision random_wrap random_unwrap pvary "
    "optimization_barrier".split()
)
_MOVES = frozenset(
    "gather scatter scatter-add concatenate rev sort top_k cumsum cummax cumprod "
    "dynamic_slice dynamic_update_slice pad argmax argmin cumlogsumexp".split()
)
_TRANSCENDENTAL = frozenset(
    "exp exp2 log log1p expm1 tanh logistic erf erf_inv sin cos tan rsqrt sqrt cbrt pow".split()
)
_TRANSCENDENTAL_FLOPS = 8.0
_RANDOM_FLOPS = 100.0  # 20 rounds of Threefry, five operations each


@dataclasses.dataclass(frozen=True)
class EquationCost:
    """One execution of an equation on one device.

    Attributes:
      seconds: all of it, `collective_s` included.
      flops: of matrix products and kernels.
      hbm_bytes: traffic that fusion does not save.
      collective_s: seconds between devices.
    """

    seconds: float = 0.0
    flops: float = 0.0
    hbm_bytes: float = 0.0
    collective_s: float = 0.0

    def __add__(self, other: "EquationCost") -> "EquationCost":
        return EquationCost(
            self.seconds + other.seconds,
            self.flops + other.flops,
            self.hbm_bytes + other.hbm_bytes,
            self.collective_s + other.collective_s,
        )

    def times(self, count: int) -> "EquationCost":
        """That often."""
        return EquationCost(*(count * x for x in dataclasses.astuple(self)))


def array_bytes(aval: Any) -> int:
    """Bytes of a whole array or typed key."""
    leaf = Leaf("", Role.CONSTANT, tuple(aval.shape), str(aval.dtype))
    return leaf.size_bytes


SpecOf = Callable[[Any], Spec]


def _whole(_: Any) -> Spec:
    return ()


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Costs on one machine.

    Attributes:
      machine: what the devices do a second.
      mesh: the devices in the machine's order, and the axes that specs name.
    """

    machine: MachineModel
    mesh: Mesh

    def degree(self, spec: Spec) -> int:
        """Shards that a spec makes."""
        return math.prod(self.mesh.shape[axis] for dim in spec for axis in dim)

    def local_bytes(self, aval: Any, spec: Spec) -> float:
        """Bytes of an array on one device."""
        return array_bytes(aval) / self.degree(spec)

    def of(self, eqn: ir.JaxprEqn, spec_of: SpecOf, held: frozenset[Any]) -> EquationCost:
        """Cost of an equation.

        Args:
          eqn: the equation.
          spec_of: how a variable is sharded.
          held: variables that a backward pass lays out for its own use anyway (parameters): their
            gathers are not counted.
        """
        name, params = eqn.primitive.name, eqn.params
        if name in _FREE or not eqn.outvars:
            return EquationCost()
        if name == "dot_general":
            return self._product(eqn, spec_of, held)
        if name == "conv_general_dilated":
            return self._convolution(eqn, spec_of)
        if name == "pallas_call":
            return self._kernel(eqn)
        if name == "shard_map":
            return self._inner(params["jaxpr"], _whole)
        if name == "scan":
            return self._inner(params["jaxpr"], _whole).times(params["length"])
        if name == "while":
            return self._inner(params["body_jaxpr"], _whole)
        if name == "cond":
            branches = [self._inner(branch, _whole) for branch in params["branches"]]
            return max(branches, key=lambda cost: cost.seconds)
        called = ir.callee(eqn)
        if called is not None:
            inner = called[0]
            outer = dict(zip(inner.invars, eqn.invars, strict=True))
            share = {var: spec_of(x) for var, x in outer.items() if not ir.is_literal(x)}
            widest = max(share.values(), key=self.degree, default=())
            return self._inner(inner, lambda x: share.get(x, _fitting(widest, x)))
        return self._other(eqn, spec_of)

    def _inner(self, jaxpr: Any, spec_of: SpecOf) -> EquationCost:
        eqns = ir.closed(jaxpr)[0].eqns
        return sum((self.of(e, spec_of, frozenset()) for e in eqns), EquationCost())

    def _bytes(self, atoms: Sequence[Any], spec_of: SpecOf) -> float:
        found = (x for x in atoms if not ir.is_literal(x) and not ir.is_dropped(x))
        return sum(self.local_bytes(x.aval, spec_of(x)) for x in found)

    def _matrix_s(self, flops: float, traffic: float, dtype: Any) -> float:
        rate = self.machine.flops_per_s(hlo_dtype(str(dtype)))
        return max(flops / (rate * self.machine.efficiency), traffic / self.machine.hbm_bytes_per_s)

    def _product(self, eqn: ir.JaxprEqn, spec_of: SpecOf, held: frozenset[Any]) -> EquationCost:
        left: Any = eqn.invars[0]
        right: Any = eqn.invars[1]
        result: Any = eqn.outvars[0]
        (left_c, right_c), _ = eqn.params["dimension_numbers"]
        specs = [_padded(spec_of(x), x) for x in (left, right, result)]
        contracted = [
            {a for d in dims for a in spec[d]}
            for dims, spec in zip((left_c, right_c), specs[:2], strict=True)
        ]
        made = {a for dim in specs[2] for a in dim}
        seconds, reduced = 0.0, set[str]()
        for side, other, x in ((0, 1, left), (1, 0, right)):
            kept = {a for d, dim in enumerate(specs[other]) for a in dim} - contracted[other]
            gathered = contracted[side] & kept
            if gathered and x not in held:
                local = self.local_bytes(x.aval, specs[side])
                payload = local * math.prod(self.mesh.shape[a] for a in gathered)
                seconds += self.collective_s("all-gather", payload, gathered)
            reduced |= contracted[side] - kept
        axes = {a for a in made | reduced if self.mesh.shape[a] > 1}
        sizes = math.prod(left.aval.shape[d] for d in left_c)
        flops = 2.0 * math.prod(result.aval.shape) * sizes
        flops /= math.prod(self.mesh.shape[a] for a in axes)
        traffic = self._bytes([left, right, result], spec_of)
        if reduced:
            scattered = reduced <= made
            local = array_bytes(result.aval) / self.degree(
                tuple(tuple(a for a in dim if a not in reduced) for dim in specs[2])
            )
            kind = "reduce-scatter" if scattered else "all-reduce"
            seconds += self.collective_s(kind, local, reduced)
        busy = self._matrix_s(flops, traffic, left.aval.dtype)
        return EquationCost(busy + seconds, flops, traffic, seconds)

    def _convolution(self, eqn: ir.JaxprEqn, spec_of: SpecOf) -> EquationCost:
        kernel: Any = eqn.invars[1].aval
        result: Any = eqn.outvars[0]
        out_features = eqn.params["dimension_numbers"].rhs_spec[0]
        each = math.prod(kernel.shape) / kernel.shape[out_features]
        flops = 2.0 * math.prod(result.aval.shape) * each / self.degree(spec_of(result))
        traffic = self._bytes([*eqn.invars, *eqn.outvars], spec_of)
        return EquationCost(self._matrix_s(flops, traffic, kernel.dtype), flops, traffic)

    def _kernel(self, eqn: ir.JaxprEqn) -> EquationCost:
        traffic = self._bytes([*eqn.invars, *eqn.outvars], _whole)
        estimate = eqn.params.get("cost_estimate")
        grid = getattr(eqn.params.get("grid_mapping"), "grid", ())
        if estimate is None:
            steps = math.prod(n for n in grid if isinstance(n, int))
            inner = self._inner(eqn.params["jaxpr"], _whole).times(steps)
            return dataclasses.replace(inner, hbm_bytes=traffic)
        large: Any = max((x.aval for x in eqn.invars), key=array_bytes)
        busy = self._matrix_s(estimate.flops, estimate.bytes_accessed, large.dtype)
        busy += 2 * _TRANSCENDENTAL_FLOPS * estimate.transcendentals / self.machine.vector_flops
        return EquationCost(busy, estimate.flops, estimate.bytes_accessed)

    def _other(self, eqn: ir.JaxprEqn, spec_of: SpecOf) -> EquationCost:
        name = eqn.primitive.name
        traffic = 0.0
        if name in _MOVES or name.startswith(("reduce_", "window")):
            traffic = self._bytes([*eqn.invars, *eqn.outvars], spec_of)
        size = sum(
            math.prod(x.aval.shape) / self.degree(spec_of(x))
            for x in eqn.outvars
            if not ir.is_dropped(x) and hasattr(x.aval, "shape")
        )
        each = _TRANSCENDENTAL_FLOPS if name in _TRANSCENDENTAL else 1.0
        each = _RANDOM_FLOPS if name in ("random_bits", "threefry2x32") else each
        seconds = max(
            traffic / self.machine.hbm_bytes_per_s, each * size / self.machine.vector_flops
        )
        return EquationCost(seconds, 0.0, traffic)

    def collective_s(
        self, kind: str, payload_bytes: float, axes: Sequence[str] | set[str]
    ) -> float:
        """Seconds of a collective over some axes of the mesh.

        Args:
          kind: in HLO's spelling.
          payload_bytes: a device's data, of the larger side.
          axes: of the mesh.
        """
        wide = tuple(a for a in self.mesh.axis_names if a in axes and self.mesh.shape[a] > 1)
        if not wide:
            return 0.0
        groups = _groups(tuple(self.mesh.shape.items()), wide)
        return collective_time(self.machine, kind, payload_bytes, groups).seconds


@functools.lru_cache(maxsize=256)
def _groups(shape: tuple[tuple[str, int], ...], axes: tuple[str, ...]) -> tuple[Any, ...]:
    """The groups of logical devices that differ along some axes only."""
    names = [name for name, _ in shape]
    devices = np.arange(math.prod(size for _, size in shape)).reshape([n for _, n in shape])
    places = [names.index(axis) for axis in axes]
    last = np.moveaxis(devices, places, range(-len(places), 0))
    size = math.prod(dict(shape)[axis] for axis in axes)
    return tuple(tuple(int(d) for d in row) for row in last.reshape(-1, size))


def _padded(spec: Spec, atom: Any) -> Spec:
    rank = len(atom.aval.shape)
    return (*spec, *(((),) * (rank - len(spec))))[:rank]


def _fitting(spec: Spec, atom: Any) -> Spec:
    """A spec for an intermediate of a call: that of its widest operand, where the rank is alike."""
    return spec if len(getattr(atom.aval, "shape", ())) == len(spec) else ()
