"""A checker of factor maps by computation: run the operation on slices, compare with the whole.

It reads a rule's factors and roles but shares no code with the functions that write rules. What a
role promises of a factor that is cut in two is

    PARALLEL    the operation on slices of the operands gives slices of the results
    CONTRACTED  the results of the two slices combine (by sum, maximum, ...) to the whole results
    INDEXED     of operands only: its halves, zeros elsewhere, give results that add up; of
                operand and result: rows of the result depend on no other rows of the operand
    HALO        a slice of the result depends on its own and neighbouring elements only
    BLOCKED     nothing
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autoshard.factors import ArrayFactors, FactorRole, OpRule
from autoshard.graph import Op, OpGraph, Value
from autoshard.sharding_rules import rule_for
from passes import ir

Params = dict[str, Any]
Shapes = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Applied:
    """One equation with the arrays that it was applied to and those that it gave."""

    eqn: ir.JaxprEqn
    operands: tuple[Any, ...]
    results: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.eqn.primitive.name

    @property
    def key(self) -> str:
        """Equal for equations of which one check is enough."""
        shapes = [f"{x.dtype}{x.shape}" for x in (*self.operands, *self.results)]
        return f"{self.name} {shapes} {self.eqn.params}"

    def rule(self) -> OpRule:
        """The table's rule."""
        values = tuple(Value(x.shape, str(x.dtype)) for x in (*self.operands, *self.results))
        inputs = tuple(range(len(self.operands)))
        outputs = tuple(range(len(inputs), len(values)))
        op = Op(self.name, inputs, outputs, self.eqn.params, 1)
        return rule_for(op, OpGraph(values, (op,), inputs, outputs))


def _host(array: Any) -> Any:
    """As a numpy array, whose slicing compiles nothing; random keys stay what they are."""
    return array if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else np.asarray(array)


def _bind(eqn: ir.JaxprEqn, operands: Sequence[Any], params: Params) -> list[Any]:
    results = eqn.primitive.bind(*operands, **params)
    return list(results) if isinstance(results, (list, tuple)) else [results]


def _applied(eqns: Sequence[ir.JaxprEqn], arrays: Sequence[tuple[Any, Any]]) -> list[Applied]:
    return [
        Applied(eqn, tuple(map(_host, operands)), tuple(map(_host, results)))
        for eqn, (operands, results) in zip(eqns, arrays, strict=True)
    ]


def applied(function: Callable[..., Any], *arguments: Any) -> list[Applied]:
    """Run a function and keep what goes into and comes out of each equation, calls inlined."""
    eqns: list[ir.JaxprEqn] = []

    def run(
        jaxpr: ir.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], kept: list[Any]
    ) -> list[Any]:
        env: dict[ir.Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Any:
            if ir.is_literal(atom):
                return jnp.asarray(atom.val, atom.aval.dtype)
            return env[atom]

        for eqn in jaxpr.eqns:
            operands = [read(x) for x in eqn.invars]
            called = ir.callee(eqn)
            if called is not None:
                results = run(*called, operands, kept)
            else:
                results = _bind(eqn, operands, eqn.params)
                eqns.append(eqn)
                kept.append((operands, results))
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(x) for x in jaxpr.outvars]

    leaves, tree = jax.tree.flatten(arguments)
    jaxpr, consts = ir.closed(
        jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(tree, flat)))(*leaves)
    )

    @jax.jit
    def everything(*inputs: Any) -> list[Any]:
        kept: list[Any] = []
        run(jaxpr, consts, inputs, kept)
        return kept

    arrays = everything(*leaves)
    return _applied(eqns, arrays)


def sampled(
    jaxpr: ir.Jaxpr, sample: Callable[[Any], Any], without: frozenset[str]
) -> list[Applied]:
    """Every distinct equation of a program, calls included, applied to made-up operands.

    Args:
      jaxpr: the program.
      sample: from a shape and dtype to an array, or None to leave out equations that have one.
      without: primitives to leave out.
    """
    chosen: dict[str, tuple[ir.JaxprEqn, list[Any]]] = {}
    for eqn in ir.equations(jaxpr):
        avals: list[Any] = [x.aval for x in eqn.invars]
        key = f"{eqn.primitive} {[(a.shape, str(a.dtype)) for a in avals]} {eqn.params}"
        if ir.callee(eqn) is not None or key in chosen or eqn.primitive.name in without:
            continue
        operands = [sample(aval) for aval in avals]
        if all(operand is not None for operand in operands):
            chosen[key] = (eqn, operands)
    eqns = [eqn for eqn, _ in chosen.values()]

    @jax.jit
    def everything(inputs: Any) -> list[Any]:
        return [_bind(eqn, x, eqn.params) for eqn, x in zip(eqns, inputs, strict=True)]

    inputs = [operands for _, operands in chosen.values()]
    return _applied(eqns, list(zip(inputs, everything(inputs), strict=True)))


class Runner:
    """Collects what a first pass wants computed, computes it in one compilation, and answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[ir.JaxprEqn, Params, list[Any]]] = []
        self.answers: Iterator[list[Any]] | None = None

    @property
    def recording(self) -> bool:
        """Whether this is the first pass, in which results are zeros."""
        return self.answers is None

    def bind(self, whole: Applied, operands: Sequence[Any], results: Shapes) -> list[Any]:
        """Apply the equation's primitive to slices whose results should have those shapes."""
        if self.answers is not None:
            return next(self.answers)
        params = dict(whole.eqn.params)
        adjust = ADJUST.get(whole.name)
        if adjust is not None:
            old = [x.shape for x in whole.operands]
            params |= adjust(params, [x.shape for x in operands], results, old)
        self.requests.append((whole.eqn, params, list(operands)))
        made = jax.eval_shape(lambda *x: _bind(whole.eqn, x, params), *operands)
        keyed = jax.dtypes.prng_key
        return [
            whole.results[i] if jnp.issubdtype(s.dtype, keyed) else np.zeros(s.shape, s.dtype)
            for i, s in enumerate(made)
        ]

    def compute(self) -> None:
        """End the first pass."""
        wanted = [(eqn, params) for eqn, params, _ in self.requests]

        @jax.jit
        def everything(inputs: Any) -> list[Any]:
            pairs = zip(wanted, inputs, strict=True)
            return [_bind(eqn, x, params) for (eqn, params), x in pairs]

        made = everything([operands for _, _, operands in self.requests])
        self.answers = iter([[_host(x) for x in results] for results in made])


def _cut(array: Any, dims: ArrayFactors, rule: OpRule, factor: int, part: slice) -> Any:
    """The part of `array` at positions `part` of `factor`, which may stand inside a dimension."""
    if not any(factor in dim for dim in dims):
        return array
    split = [rule.factors[f].size for dim in dims for f in dim]
    axes = [f for dim in dims for f in dim]
    pieces = array.reshape(split)[tuple(part if f == factor else slice(None) for f in axes)]
    length = len(range(*part.indices(rule.factors[factor].size)))
    shape = [math.prod(length if f == factor else rule.factors[f].size for f in d) for d in dims]
    return pieces.reshape(shape)


def _keep(
    array: Any, dims: ArrayFactors, rule: OpRule, factor: int, part: slice, other: Any
) -> Any:
    """`array` at positions `part` of `factor`, and `other` (an array or a number) elsewhere."""
    if not any(factor in dim for dim in dims):
        return array
    split = [rule.factors[f].size for dim in dims for f in dim]
    axes = [f for dim in dims for f in dim]
    mask = np.zeros(split, bool)
    mask[tuple(part if f == factor else slice(None) for f in axes)] = True
    return np.where(mask.reshape(array.shape), array, np.asarray(other, array.dtype))


def _slice_params(params: Params, operands: Shapes, results: Shapes, old: Shapes) -> Params:
    limits, starts = list(params["limit_indices"]), params["start_indices"]
    strides = params["strides"] or (1,) * len(limits)
    for d, size in enumerate(old[0]):
        if starts[d] == 0 and limits[d] == size and strides[d] == 1:
            limits[d] = operands[0][d]
    return {"limit_indices": tuple(limits)}


def _gather_params(params: Params, operands: Shapes, results: Shapes, old: Shapes) -> Params:
    sizes = zip(params["slice_sizes"], old[0], operands[0], strict=True)
    return {"slice_sizes": tuple(new if s == before else s for s, before, new in sizes)}


def _conv_params(params: Params, operands: Shapes, results: Shapes, old: Shapes) -> Params:
    numbers = params["dimension_numbers"]
    lhs, rhs, _ = numbers
    changed: Params = {}
    if params["feature_group_count"] > 1:
        changed["feature_group_count"] = operands[0][lhs[1]] // operands[1][rhs[1]]
    if params["batch_group_count"] > 1 and operands[0][lhs[0]] != old[0][lhs[0]]:
        kept = old[0][lhs[0]] // params["batch_group_count"]
        if operands[1][rhs[0]] != old[1][rhs[0]]:  # groups were cut, not the batch inside one
            changed["batch_group_count"] = operands[0][lhs[0]] // kept
    strides = []
    for axis, stride in enumerate(params["window_strides"]):
        window = old[1][rhs[2 + axis]]
        cut_window = stride == window and operands[1][rhs[2 + axis]] != window
        strides.append(operands[1][rhs[2 + axis]] if cut_window else stride)
    return {**changed, "window_strides": tuple(strides)}


def _tile_params(params: Params, operands: Shapes, results: Shapes, old: Shapes) -> Params:
    extra = len(results[0]) - len(operands[0])
    source = (1,) * extra + tuple(operands[0])
    return {"reps": tuple(r // s for r, s in zip(results[0], source, strict=True))}


# Parameters that hold sizes, for an operation on slices: (params, the operands' new shapes, the
# results' new shapes, the operands' old shapes) -> what changes.
ADJUST: Mapping[str, Callable[[Params, Shapes, Shapes, Shapes], Params]] = {
    "reshape": lambda p, a, r, old: {"new_sizes": tuple(r[0])},
    "broadcast_in_dim": lambda p, a, r, old: {"shape": tuple(r[0])},
    "dynamic_slice": lambda p, a, r, old: {"slice_sizes": tuple(r[0])},
    "slice": _slice_params,
    "gather": _gather_params,
    "conv_general_dilated": _conv_params,
    "tile": _tile_params,
}

# How partial results combine.
COMBINE: Mapping[str, Callable[[Any, Any, Applied], Any]] = {
    "reduce_max": lambda a, b, whole: np.maximum(a, b),
    "reduce_min": lambda a, b, whole: np.minimum(a, b),
    "reduce_prod": lambda a, b, whole: a * b,
    "reduce_and": lambda a, b, whole: a & b,
    "reduce_or": lambda a, b, whole: a | b,
    "reduce_xor": lambda a, b, whole: a ^ b,
    "scatter-add": lambda a, b, whole: a + b - whole.operands[0],
    "scatter-sub": lambda a, b, whole: a + b - whole.operands[0],
    "scatter-mul": lambda a, b, whole: a * b / whole.operands[0],
    "scatter-min": lambda a, b, whole: np.minimum(a, b),
    "scatter-max": lambda a, b, whole: np.maximum(a, b),
}
ARGUMENT = {"argmax": np.maximum, "argmin": np.minimum}
# Results that stand for positions, not for their operands' slices: nothing to slice.
MADE = frozenset("iota random_bits random_split random_unwrap rng_bit_generator".split())


class Check:
    """The check of one applied equation."""

    def __init__(self, whole: Applied, runner: Runner) -> None:
        self.whole = whole
        self.runner = runner
        self.rule = whole.rule()
        self.what = f"{whole.name} {self.rule}"

    def run(self) -> None:
        """Check the shape of the rule and every factor."""
        self.shape()
        for factor, info in enumerate(self.rule.factors):
            of_operand = bool(self.rule.positions(factor, self.rule.operands))
            of_result = bool(self.rule.positions(factor, self.rule.results))
            if info.role is FactorRole.PARALLEL:
                assert of_result, f"{self.what}: a parallel factor vanishes"
                if of_operand or self.whole.name not in MADE:
                    self.parallel(factor)
            elif info.role is FactorRole.CONTRACTED:
                assert of_operand and not of_result, self.what
                self.contracted(factor)
            elif info.role is FactorRole.INDEXED:
                self.rows(factor) if of_result else self.picked(factor)
            elif info.role is FactorRole.HALO:
                self.halo(factor)

    def bind(self, operands: Sequence[Any], results: Shapes) -> list[Any]:
        """The operation on other operands."""
        return self.runner.bind(self.whole, operands, results)

    def close(self, actual: Any, expected: Any, factor: int) -> None:
        """Compare, in the second pass."""
        if self.runner.recording:
            return
        what = f"{self.what}, factor {factor}"
        assert actual.shape == expected.shape, f"{what}: {actual.shape} != {expected.shape}"
        if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
            actual, expected = jax.random.key_data(actual), jax.random.key_data(expected)
        actual, expected = (np.asarray(x).astype(np.complex128) for x in (actual, expected))
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4, err_msg=what)

    def shape(self) -> None:
        """The sizes of a dimension's factors multiply to it; no factor twice in one array."""
        arrays = (*self.whole.operands, *self.whole.results)
        factors = (*self.rule.operands, *self.rule.results)
        assert len(arrays) == len(factors), self.what
        for array, dims in zip(arrays, factors, strict=True):
            sizes = tuple(math.prod(self.rule.factors[f].size for f in dim) for dim in dims)
            assert sizes == array.shape, f"{self.what}: {sizes} != {array.shape}"
            flat = [f for dim in dims for f in dim]
            assert len(set(flat)) == len(flat), self.what
        assert all(factor.size > 1 for factor in self.rule.factors), self.what

    def halves(self, factor: int) -> Iterator[slice]:
        """Two parts of a factor, of different sizes if it is odd."""
        size = self.rule.factors[factor].size
        yield slice(0, size // 2)
        yield slice(size // 2, size)

    def operands(self, factor: int, part: slice) -> list[Any]:
        pairs = zip(self.whole.operands, self.rule.operands, strict=True)
        return [_cut(x, dims, self.rule, factor, part) for x, dims in pairs]

    def results(self, factor: int, part: slice) -> list[Any]:
        pairs = zip(self.whole.results, self.rule.results, strict=True)
        return [_cut(x, dims, self.rule, factor, part) for x, dims in pairs]

    def parallel(self, factor: int) -> None:
        for part in self.halves(factor):
            expected = self.results(factor, part)
            actual = self.bind(self.operands(factor, part), [x.shape for x in expected])
            for a, b in zip(actual, expected, strict=True):
                self.close(a, b, factor)

    def contracted(self, factor: int) -> None:
        if self.whole.name == "conv_general_dilated" and self._moves(factor):
            self._contracted_with_border(factor)
            return
        shapes = [x.shape for x in self.whole.results]
        parts = [self.operands(factor, part) for part in self.halves(factor)]
        partial = [self.bind(operands, shapes) for operands in parts]
        if self.whole.name in ARGUMENT:
            combined = [self._argument(factor, parts, [p[0] for p in partial])]
        else:
            combine = COMBINE.get(self.whole.name, lambda a, b, whole: a + b)
            combined = [combine(a, b, self.whole) for a, b in zip(*partial, strict=True)]
        for a, b in zip(combined, self.whole.results, strict=True):
            self.close(a, b, factor)

    def _argument(self, factor: int, parts: Sequence[Any], indices: Sequence[Any]) -> Any:
        """Of the halves' best positions the one with the better value; the first on a tie."""
        axis = self.whole.eqn.params["axes"][0]
        values = [
            np.take_along_axis(p[0], np.expand_dims(i, axis), axis).squeeze(axis)
            for p, i in zip(parts, indices, strict=True)
        ]
        best = ARGUMENT[self.whole.name](*values)
        second = indices[1] + self.rule.factors[factor].size // 2
        return np.where(best == values[0], indices[0], second)

    def _moves(self, factor: int) -> bool:
        """Whether the factor is space that the kernel covers and is moved over."""
        return self._border(factor) != (0, 0)

    def _border(self, factor: int) -> tuple[int, int]:
        spatial = self.whole.eqn.params["dimension_numbers"][0][2:]
        for axis, d in enumerate(spatial):
            if factor in self.rule.operands[0][d]:
                return tuple(self.whole.eqn.params["padding"][axis])
        return (0, 0)

    def _contracted_with_border(self, factor: int) -> None:
        low, high = self._border(factor)
        total: Any = 0
        image, kernel = self.whole.operands
        for part in self.halves(factor):
            reach = slice(max(part.start - low, 0), part.stop + high)
            total = (
                total
                + self.bind(
                    [
                        _keep(image, self.rule.operands[0], self.rule, factor, reach, 0.0),
                        _keep(kernel, self.rule.operands[1], self.rule, factor, part, 0.0),
                    ],
                    [x.shape for x in self.whole.results],
                )[0]
            )
        self.close(total, self.whole.results[0], factor)

    def picked(self, factor: int) -> None:
        """A gather from an operand of which each half holds zeros elsewhere, summed."""
        total: Any = 0
        for part in self.halves(factor):
            pairs = zip(self.whole.operands, self.rule.operands, strict=True)
            held = [_keep(x, dims, self.rule, factor, part, 0) for x, dims in pairs]
            total = total + self.bind(held, [x.shape for x in self.whole.results])[0]
        self.close(total, self.whole.results[0], factor)

    def rows(self, factor: int) -> None:
        for part in self.halves(factor):
            self._independent(factor, part, part)

    def halo(self, factor: int) -> None:
        params = self.whole.eqn.params
        if "window_dimensions" in params:
            d = self.rule.positions(factor, self.rule.operands)[0][1]
            reach = int(params["window_dimensions"][d]) - 1
            if self.whole.name == "select_and_scatter_add":
                reach *= 2
        else:
            lhs, rhs, _ = params["dimension_numbers"]
            axis = next(a for a, d in enumerate(lhs[2:]) if factor in self.rule.operands[0][d])
            reach = self.whole.operands[1].shape[rhs[2 + axis]] - 1
        for part in self.halves(factor):
            near = slice(max(part.start - reach, 0), part.stop + reach)
            self._independent(factor, part, near)

    def _independent(self, factor: int, part: slice, near: slice) -> None:
        """`part` of the results does not change when operands change outside `near`."""
        changed = [
            _keep(x, dims, self.rule, factor, near, np.flip(x) + 1)
            for x, dims in zip(self.whole.operands, self.rule.operands, strict=True)
        ]
        actual = self.bind(changed, [x.shape for x in self.whole.results])
        pairs = zip(actual, self.rule.results, self.results(factor, part), strict=True)
        for result, dims, expected in pairs:
            self.close(
                _cut(result, dims, self.rule, factor, part),
                expected,
                factor,
            )


def run_checks(applications: Sequence[Applied]) -> None:
    """Check all of them, compiling once."""
    runner = Runner()
    checks = [Check(one, runner) for one in applications]
    for check in checks:
        check.run()
    runner.compute()
    for check in checks:
        check.run()


def check_function(function: Callable[..., Any], *arguments: Any) -> frozenset[str]:
    """Check every equation of a function; returns the primitives that were met."""
    unique = {one.key: one for one in applied(function, *arguments)}
    run_checks(list(unique.values()))
    return frozenset(one.name for one in unique.values())


def rule_of(primitive: str, function: Callable[..., Any], *arguments: Any) -> OpRule:
    """The rule of the last equation of that primitive in a function."""
    found = [one for one in applied(function, *arguments) if one.name == primitive]
    assert found, f"no {primitive} in {jax.make_jaxpr(function)(*arguments)}"
    return found[-1].rule()
