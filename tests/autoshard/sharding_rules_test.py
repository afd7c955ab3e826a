"""Every primitive's factor map, by computation on slices and by known answers."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import models
from autoshard import losses
from autoshard.adapters import adapt
from autoshard.factors import Factor, FactorRole, OpRule
from autoshard.graph import Op, OpGraph, Value
from autoshard.precision import Precision
from autoshard.sharding_rules import TABLE, rule_for
from autoshard.trace import gradient_program, trace_model
from passes import ir
from tests.autoshard.slice_checker import check_function, rule_of, run_checks, sampled

Function = Callable[..., Any]


def f32(*shape: int) -> jax.Array:
    """Distinct numbers in (0, 1), the same for a shape every time."""
    seed = zlib.crc32(str(shape).encode())
    return jnp.asarray(np.random.default_rng(seed).uniform(0.05, 0.95, shape), jnp.float32)


def i32(high: int, *shape: int) -> jax.Array:
    """Integers in [0, high)."""
    return jnp.asarray(np.random.default_rng(7).integers(0, high, shape), jnp.int32)


def keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), count)


def grad(function: Function, argnums: int = 0) -> Function:
    """The gradient of the sum of the function's squares."""
    return jax.grad(lambda *a: (function(*a) ** 2).sum(), argnums)


UNARY = """
abs acosh asin acos asinh atan atanh bessel_i0e bessel_i1e cbrt ceil conj cos cosh digamma erf
erf_inv erfc exp exp2 expm1 floor is_finite lgamma log log1p logistic neg round rsqrt sign sin sinh
sqrt square stop_gradient tan tanh
""".split()
BINARY = """
add atan2 complex div eq ge gt le lt max min mul ne nextafter pow rem sub
""".split()


def conv(window: int, stride: int = 1, padding: Any = "SAME", groups: int = 1) -> Function:
    """A two-dimensional convolution of NHWC with HWIO."""

    def apply(image: jax.Array, kernel: jax.Array) -> jax.Array:
        assert kernel.shape[0] == window
        return lax.conv_general_dilated(
            image,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return apply


def batch_grouped(image: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        image,
        kernel,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        batch_group_count=2,
    )


def max_pool(x: jax.Array, window: int, stride: int, padding: str) -> jax.Array:
    return nn.max_pool(x, (window, window), (stride, stride), padding)


def per_row(x: jax.Array, i: jax.Array) -> jax.Array:
    """A batched slice of two rows that starts somewhere else for every example."""
    return jax.vmap(lambda row, start: lax.dynamic_slice(row, (start,), (2,)))(x, i)


ELEMENTWISE: Mapping[str, tuple[Function, tuple[Any, ...]]] = {
    **{
        name: (getattr(lax, name), ((1.5 if name == "acosh" else 0.0) + f32(4, 6),))
        for name in UNARY
    },
    **{name: (getattr(lax, name), (f32(4, 6), 1.5 + f32(4, 6))) for name in BINARY},
    "and": (lax.bitwise_and, (i32(9, 4, 6), i32(5, 4, 6))),
    "or": (lax.bitwise_or, (i32(9, 4, 6), i32(5, 4, 6))),
    "xor": (lax.bitwise_xor, (i32(9, 4, 6), i32(5, 4, 6))),
    "not": (lax.bitwise_not, (i32(9, 4, 6),)),
    "clz": (lax.clz, (i32(9, 4, 6),)),
    "population_count": (lax.population_count, (i32(9, 4, 6),)),
    "shift_left": (lax.shift_left, (i32(9, 4, 6), i32(5, 4, 6))),
    "shift_right_logical": (lax.shift_right_logical, (i32(9, 4, 6), i32(5, 4, 6))),
    "shift_right_arithmetic": (lax.shift_right_arithmetic, (i32(9, 4, 6), i32(5, 4, 6))),
    "real": (lambda x: lax.real(lax.complex(x, x)), (f32(4, 6),)),
    "imag": (lambda x: lax.imag(lax.complex(x, x)), (f32(4, 6),)),
    "integer_pow": (lambda x: x**3, (f32(4, 6),)),
    "clamp": (lambda x: jnp.clip(lax.clamp(0.2, x, 0.7), 0.3, 0.6), (f32(4, 6),)),
    "select_n": (lambda x, y: lax.select(x > 0.5, x, y), (f32(4, 6), 1.5 + f32(4, 6))),
    "convert_element_type": (lambda x: x.astype(jnp.bfloat16), (f32(4, 6),)),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 5, 10), (f32(4, 6),)),
    "name": (lambda x: checkpoint_name(x, "here"), (f32(4, 6),)),
    "copy": (lambda x: jnp.array(x, copy=True), (f32(4, 6),)),
    "optimization_barrier": (lambda *x: lax.optimization_barrier(x), (f32(4, 6), f32(6, 4))),
    "device_put": (jax.device_put, (f32(4, 6),)),
}

CASES: Mapping[str, tuple[Function, tuple[Any, ...]]] = {
    "size-1 operands": (lax.add, (f32(4, 1), f32(4, 1))),
    "broadcast of size 1": (lambda x, y: x * y, (f32(4, 6), f32(1, 6))),
    "reshape merge": (lambda x: x.reshape(24, 5), (f32(4, 6, 5),)),
    "reshape split": (lambda x: x.reshape(2, 2, 3, 2), (f32(4, 6),)),
    "reshape 12x8 to 8x12": (lambda x: x.reshape(8, 12), (f32(12, 8),)),
    "reshape 6x4 to 4x6": (lambda x: x.reshape(4, 6), (f32(6, 4),)),
    "reshape 2x3x4 to 3x8": (lambda x: x.reshape(3, 8), (f32(2, 3, 4),)),
    "reshape with ones": (lambda x: x.reshape(1, 6, 1, 4), (f32(6, 4, 1),)),
    "reshape of heads": (lambda x: x.reshape(2, 3, 4, 5), (f32(2, 3, 20),)),
    "reshape of a permutation": (
        lambda x: lax.reshape(x, (4, 6), dimensions=(2, 0, 1)),
        (f32(2, 3, 4),),
    ),
    "broadcast_in_dim": (lambda x: jnp.broadcast_to(x, (5, 4, 6)), (f32(4, 1),)),
    "transpose": (lambda x: x.transpose(2, 0, 1), (f32(2, 3, 4),)),
    "squeeze": (lambda x: lax.squeeze(x, (1, 3)), (f32(2, 1, 4, 1),)),
    "slice": (lambda x: x[1:3, :, ::2], (f32(4, 6, 8),)),
    "pad": (lambda x: jnp.pad(x, ((1, 2), (0, 0))), (f32(4, 6),)),
    "pad that shifts": (lambda x: lax.pad(x, 0.0, ((1, -1, 0), (0, 0, 0))), (f32(4, 6),)),
    "concatenate": (lambda x, y: jnp.concatenate((x, y), 1), (f32(4, 6), f32(4, 2))),
    "concatenate equals": (lambda x, y: jnp.concatenate((x, y), 0), (f32(4, 6), f32(4, 6))),
    "split": (lambda x: jnp.split(x, 2, axis=1), (f32(4, 6),)),
    "roll": (lambda x: jnp.roll(x, 1, axis=1), (f32(4, 6),)),
    "dynamic_slice": (lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 6)), (f32(4, 6), i32(2))),
    "dynamic_update_slice": (
        lambda x, y, i: lax.dynamic_update_slice(x, y, (i, 0)),
        (f32(4, 6), f32(2, 6), i32(2)),
    ),
    "update of one row": (
        lambda x, y, i: lax.dynamic_update_slice(x, y, (i, 0)),
        (f32(4, 6), f32(1, 6), i32(3)),
    ),
    "rev": (lambda x: jnp.flip(x, 0), (f32(4, 6),)),
    "tile": (lambda x: jnp.tile(x, (5, 2, 3)), (f32(4, 6),)),
    "stack": (lambda x, y: jnp.stack((x, y), 1), (f32(4, 6), f32(4, 6))),
    "unstack": (lambda x: jnp.unstack(x, axis=1), (f32(4, 6),)),
    "repeat": (lambda x: jnp.repeat(x, 3, axis=1), (f32(4, 6),)),
    "bitcast": (lambda x: lax.bitcast_convert_type(x, jnp.int32), (f32(4, 6),)),
    "bitcast to bytes": (lambda x: lax.bitcast_convert_type(x, jnp.uint8), (f32(4, 6),)),
    "bitcast of bytes": (
        lambda x: lax.bitcast_convert_type(x.astype(jnp.uint8), jnp.int32),
        (i32(9, 3, 4),),
    ),
    "iota": (lambda: lax.broadcasted_iota(jnp.int32, (4, 6), 1), ()),
    "random bits": (lambda k: jax.random.bits(k, (4, 6)), (jax.random.key(0),)),
    "random normal of a batch of keys": (
        jax.vmap(lambda k: jax.random.normal(jax.random.split(k)[0], (6,))),
        (keys(4),),
    ),
    "raw keys": (
        jax.vmap(lambda k: jax.random.bits(jax.random.wrap_key_data(k), (3,))),
        (jax.random.key_data(keys(4)),),
    ),
    "key data": (lambda k: jax.random.key_data(jax.random.clone(k)), (keys(4),)),
    "fold in": (jax.vmap(jax.random.fold_in), (keys(4), i32(9, 4))),
    "seeds": (jax.vmap(jax.random.key), (i32(9, 4),)),
    "rng_bit_generator": (
        lambda k: lax.rng_bit_generator(k, (4, 6)),
        (jnp.ones((4,), jnp.uint32),),
    ),
    "dot_general": (lambda x, y: jnp.einsum("bik,bjk->bij", x, y), (f32(2, 4, 6), f32(2, 5, 6))),
    "dot of two contractions": (
        lambda x, y: jnp.einsum("bshd,hde->bse", x, y),
        (f32(2, 3, 4, 6), f32(4, 6, 5)),
    ),
    "outer product": (lambda x, y: jnp.einsum("i,j->ij", x, y), (f32(4), f32(6))),
    "reduce_sum": (lambda x: x.sum((0, 2)), (f32(4, 6, 2),)),
    "reduce_max": (lambda x: x.max(1), (f32(4, 6),)),
    "reduce_min": (lambda x: x.min(1), (f32(4, 6),)),
    "reduce_prod": (lambda x: x.prod(1), (f32(4, 6),)),
    "reduce_and": (lambda x: (x > 0.2).all(1), (f32(4, 6),)),
    "reduce_or": (lambda x: (x > 0.8).any(1), (f32(4, 6),)),
    "reduce_xor": (lambda x: lax.reduce_xor(x, (1,)), (i32(99, 4, 6),)),
    "argmax": (lambda x: x.argmax(1), (f32(4, 6),)),
    "argmin": (lambda x: x.argmin(0), (f32(4, 6),)),
    "cumsum": (lambda x: jnp.cumsum(x, 1), (f32(4, 6),)),
    "cumprod": (lambda x: jnp.cumprod(x, 0), (f32(4, 6),)),
    "cummax": (lambda x: lax.cummax(x, 1), (f32(4, 6),)),
    "cummin": (lambda x: lax.cummin(x, 1), (f32(4, 6),)),
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x, 1), (f32(4, 6),)),
    "sort": (lambda x, y: lax.sort((x, y), dimension=1, num_keys=1), (f32(4, 6), f32(4, 6))),
    "top_k": (lambda x: lax.top_k(x, 2), (f32(4, 6),)),
    "top_k of an inner dimension": (lambda x: lax.top_k(x, 2, axis=0), (f32(4, 6),)),
    "approx_top_k": (lambda x: lax.approx_max_k(x, 2), (f32(4, 6),)),
    "embedding": (lambda t, i: jnp.take(t, i, axis=0), (f32(8, 6), i32(8, 2, 3))),
    "embedding of one row": (lambda t, i: jnp.take(t, i, axis=0), (f32(8, 6), i32(8, 1))),
    "take of columns": (lambda t, i: jnp.take(t, i, axis=1), (f32(4, 6), i32(6, 2))),
    "take_along_axis": (
        lambda x, i: jnp.take_along_axis(x, i, -1),
        (f32(4, 6), i32(6, 4, 2)),
    ),
    "gather of points": (lambda x, i, j: x[i, j], (f32(4, 6), i32(4, 2), i32(6, 2))),
    "gather of several rows": (per_row, (f32(4, 6), i32(4, 4))),
    "embedding's gradient": (
        grad(lambda t, i: jnp.take(t, i, axis=0)),
        (f32(8, 6), i32(8, 2, 3)),
    ),
    "take_along_axis' gradient": (
        grad(lambda x, i: jnp.take_along_axis(x, i, -1)),
        (f32(4, 6), i32(6, 4, 2)),
    ),
    "gather of points' gradient": (
        grad(lambda x, i, j: x[i, j]),
        (f32(4, 6), i32(4, 2), i32(6, 2)),
    ),
    "gather of several rows' gradient": (grad(per_row), (f32(4, 6), i32(4, 4))),
    "scatter": (lambda x, i, y: x.at[i].set(y), (f32(8, 6), i32(8, 4), f32(4, 6))),
    "scatter-sub": (lambda x, i, y: x.at[i].subtract(y), (f32(8, 6), i32(8, 4), f32(4, 6))),
    "scatter-mul": (lambda x, i, y: x.at[i].multiply(y), (f32(8, 6), i32(8, 4), f32(4, 6))),
    "scatter-min": (lambda x, i, y: x.at[i].min(y), (f32(8, 6), i32(8, 4), f32(4, 6))),
    "scatter-max": (lambda x, i, y: x.at[i].max(y), (f32(8, 6), i32(8, 4), f32(4, 6))),
    "conv SAME": (conv(3), (f32(2, 8, 8, 4), f32(3, 3, 4, 6))),
    "conv VALID": (conv(3, padding="VALID"), (f32(2, 8, 8, 4), f32(3, 3, 4, 6))),
    "conv causal": (conv(3, padding=((2, 0), (2, 0))), (f32(2, 8, 8, 4), f32(3, 3, 4, 6))),
    "conv strided": (conv(3, 2), (f32(2, 8, 8, 4), f32(3, 3, 4, 6))),
    "conv 1x1 strided": (conv(1, 2), (f32(2, 8, 8, 4), f32(1, 1, 4, 6))),
    "conv 1x1": (conv(1), (f32(2, 8, 8, 4), f32(1, 1, 4, 6))),
    "patches": (conv(4, 4, "VALID"), (f32(2, 8, 8, 3), f32(4, 4, 3, 6))),
    "one patch": (conv(8, 8, "VALID"), (f32(2, 8, 8, 3), f32(8, 8, 3, 6))),
    "conv grouped": (conv(3, groups=2), (f32(2, 8, 8, 4), f32(3, 3, 2, 6))),
    "conv depthwise": (conv(3, groups=4), (f32(2, 8, 8, 4), f32(3, 3, 1, 4))),
    "conv batch grouped": (batch_grouped, (f32(4, 8, 8, 4), f32(3, 3, 4, 6))),
    **{
        f"{name} gradient {argnum}": (grad(conv(*settings), argnum), shapes)
        for argnum in (0, 1)
        for name, settings, shapes in (
            ("conv SAME", (3,), (f32(2, 8, 8, 4), f32(3, 3, 4, 6))),
            ("conv VALID", (3, 1, "VALID"), (f32(2, 8, 8, 4), f32(3, 3, 4, 6))),
            ("conv strided", (3, 2), (f32(2, 8, 8, 4), f32(3, 3, 4, 6))),
            ("patches", (4, 4, "VALID"), (f32(2, 8, 8, 3), f32(4, 4, 3, 6))),
            ("conv grouped", (3, 1, "SAME", 2), (f32(2, 8, 8, 4), f32(3, 3, 2, 6))),
            ("conv on a small image", (3,), (f32(2, 3, 3, 4), f32(3, 3, 4, 6))),
        )
    },
    "dilated kernel that covers the image": (
        lambda x, k: lax.conv_general_dilated(x, k, (1,), ((3, 3),), lhs_dilation=(2,)),
        (f32(2, 3, 4), f32(5, 3, 4)),
    ),
    "max_pool": (lambda x: max_pool(x, 2, 2, "VALID"), (f32(2, 8, 8, 3),)),
    "max_pool SAME": (lambda x: max_pool(x, 3, 1, "SAME"), (f32(2, 8, 8, 3),)),
    "max_pool gradient": (grad(lambda x: max_pool(x, 2, 2, "VALID")), (f32(2, 8, 8, 3),)),
    "max_pool SAME gradient": (grad(lambda x: max_pool(x, 3, 1, "SAME")), (f32(2, 8, 8, 3),)),
    "avg_pool gradient": (grad(lambda x: nn.avg_pool(x, (2, 2), (2, 2))), (f32(2, 8, 8, 3),)),
    "min_pool": (
        lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 3), (1, 1), "SAME"),
        (f32(4, 6),),
    ),
    "reduce_window of two arrays": (
        lambda x, y: lax.reduce_window(
            (x, y),
            (np.float32(0), np.float32(0)),
            lambda a, b: (a[0] + b[0], a[1] + b[1]),
            (1, 3),
            (1, 1),
            "SAME",
        ),
        (f32(4, 6), f32(4, 6)),
    ),
}

# Primitives of the table that the cases do not meet, and why.
NOT_RUN = {
    "scan_xs scan_ys alias tie": "pseudo-operations of the graph: graph_test",
    "sharding_constraint layout_constraint reshard pvary axis_index": "need a mesh",
    "add_any stop_gradient": "made by tracing: in the gradients of models",
    "eq_to le_to lt_to": "comparators inside sort",
    "igamma igammac igamma_grad_a polygamma random_gamma regularized_incomplete_beta zeta": "slow",
    "one_minus_square polynomial": "in gradients of tanh and erf in later releases of jax",
    "mulhi threefry2x32 rng_uniform empty": "not in a traced program of the public interface",
}


def test_elementwise_on_slices() -> None:
    def everything(arguments: list[tuple[Any, ...]]) -> list[Any]:
        functions = [function for function, _ in ELEMENTWISE.values()]
        return [f(*x) for f, x in zip(functions, arguments, strict=True)]

    met = check_function(everything, [arguments for _, arguments in ELEMENTWISE.values()])
    assert set(ELEMENTWISE) <= met


@pytest.mark.parametrize("name", CASES)
def test_rules_on_slices(name: str) -> None:
    check_function(CASES[name][0], *CASES[name][1])


def test_cases_meet_every_primitive_of_the_table() -> None:
    met = set()
    for function, arguments in (*ELEMENTWISE.values(), *CASES.values()):
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
        met |= {eqn.primitive.name for eqn in ir.equations(jaxpr)}
    excused = {name for names in NOT_RUN for name in names.split()}
    assert set(TABLE) - met - excused == set()


# Every kind of layer once: rotary and grouped attention, patches, convolutions.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "llama3_tiny": {
        "num_layers": 1,
        "d_model": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
        "d_ff": 10,
        "max_seq_len": 6,
        "vocab_size": 14,
    },
    "vit_tiny": {"image_size": 8, "num_layers": 1, "d_model": 12, "num_heads": 3},
    "resnet_tiny": {"image_size": 8, "width": 4, "stage_sizes": (1, 1)},
}


# Checked by the cases above, on fewer shapes.
PLAIN = frozenset([*ELEMENTWISE, "add_any", "broadcast_in_dim", "transpose", "squeeze", "iota"])


def sample(aval: Any) -> np.ndarray | None:
    """Numbers in (0, 1), small indices or coin flips; None for random keys."""
    if str(aval.dtype).startswith("key"):
        return None
    rng = np.random.default_rng(3)
    if aval.dtype == bool:
        return rng.uniform(size=aval.shape) < 0.5
    if jnp.issubdtype(aval.dtype, jnp.integer):
        return np.asarray(rng.integers(0, 4, aval.shape), aval.dtype)
    return np.asarray(rng.uniform(0.05, 0.95, aval.shape), aval.dtype)


@pytest.mark.parametrize("name", SMALL)
def test_rules_on_every_equation_of_a_training_step(name: str) -> None:
    spec = models.get(name, **SMALL[name])
    batch = spec.example_batch(2)
    traced = trace_model(adapt(spec.build()), losses.default_loss, batch, True, Precision())
    program, _ = gradient_program(traced.program)
    found = sampled(program.jaxpr.jaxpr, sample, PLAIN)
    assert len(found) > 10
    run_checks(found)


KNOWN: Mapping[str, tuple[str, str]] = {
    "dot_general": ("dot_general", "([i,k,j],[i,l,j])->([i,k,l]) {j contracted}"),
    "dot of two contractions": (
        "dot_general",
        "([k,l,j,i],[j,i,m])->([k,l,m]) {i contracted, j contracted}",
    ),
    "reshape merge": ("reshape", "([i,j,k])->([i.j,k])"),
    "reshape split": ("reshape", "([i.j,k.l])->([i,j,k,l])"),
    "reshape 12x8 to 8x12": (
        "reshape",
        "([i.j,m])->([i.k,l]) {j blocked, k blocked, l blocked, m blocked}",
    ),
    "reshape of heads": ("reshape", "([i,j,k.l])->([i,j,k,l])"),
    "broadcast_in_dim": ("broadcast_in_dim", "([j,1])->([i,j,k])"),
    "transpose": ("transpose", "([i,j,k])->([k,i,j])"),
    "slice": ("slice", "([i,k,l])->([j,k,m]) {i blocked, j blocked, l blocked, m blocked}"),
    "pad that shifts": ("pad", "([i,k],[])->([j,k]) {i blocked, j blocked}"),
    "dynamic_update_slice": (
        "dynamic_update_slice",
        "([i,k],[j,k],[],[])->([i,k]) {i blocked, j blocked}",
    ),
    "update of one row": (
        "dynamic_update_slice",
        "([i,j],[1,j],[],[])->([i,j]) {i indexed}",
    ),
    "tile": ("tile", "([1,i,j])->([k,l.i,m.j])"),
    "stack": ("stack", "([i,j],[i,j])->([i,k,j]) {k blocked}"),
    "bitcast of bytes": ("bitcast_convert_type", "([i,j])->([i]) {j blocked}"),
    "reduce_sum": ("reduce_sum", "([i,j,k])->([j]) {i contracted, k contracted}"),
    "cumsum": ("cumsum", "([i,j])->([i,j]) {j blocked}"),
    "top_k": ("top_k", "([i,j])->([i,k],[i,k]) {j blocked, k blocked}"),
    "embedding": ("gather", "([k,l],[i,j,1])->([i,j,l]) {k indexed}"),
    "take_along_axis": ("gather", "([i,k],[i,j,1])->([i,j]) {k indexed}"),
    "gather of points": (
        "gather",
        "([k,l],[i,j])->([i]) {j blocked, k indexed, l indexed}",
    ),
    "gather of several rows": (
        "gather",
        "([i,j],[i,1])->([i,k]) {j blocked, k blocked}",
    ),
    "embedding's gradient": (
        "scatter-add",
        "([k,l],[i,j,1],[i,j,l])->([k,l]) {i contracted, j contracted, k indexed}",
    ),
    "scatter": ("scatter", "([j,k],[i,1],[i,k])->([j,k]) {i blocked, j indexed}"),
    "conv SAME": (
        "conv_general_dilated",
        "([i,l,n,j],[m,o,j,k])->([i,l,n,k]) {j contracted, l halo, m blocked, n halo, o blocked}",
    ),
    "patches": (
        "conv_general_dilated",
        "([i,l.m,n.o,j],[m,o,j,k])->([i,l,n,k]) {j contracted, m contracted, o contracted}",
    ),
    "conv grouped": (
        "conv_general_dilated",
        "([i,m,o,k.j],[n,p,j,k.l])->([i,m,o,k.l]) "
        "{j contracted, m halo, n blocked, o halo, p blocked}",
    ),
    "reshape of a permutation": ("reshape", "([j,k,i])->([i,j.k])"),
    "conv SAME gradient 1": (
        "conv_general_dilated",
        "([j,l,n,i],[j,l,n,k])->([m,o,i,k]) "
        "{j contracted, l contracted, m blocked, n contracted, o blocked}",
    ),
    "conv grouped gradient 1": (
        "conv_general_dilated",
        "([j,m,o,k.i],[j,m,o,k.l])->([n,p,i,k.l]) "
        "{j contracted, m contracted, n blocked, o contracted, p blocked}",
    ),
    "dilated kernel that covers the image": (
        "conv_general_dilated",
        "([i,j,l],[k,j,m])->([i,k,n]) {j contracted, l blocked, m blocked, n blocked}",
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_factor_maps(name: str) -> None:
    primitive, expected = KNOWN[name]
    function, arguments = CASES[name]
    assert str(rule_of(primitive, function, *arguments)) == expected


def conservative_graph() -> OpGraph:
    """A Cholesky factorisation, which the table does not know."""
    values = (Value((4, 4), "float32"), Value((4, 4), "float32"))
    return OpGraph(values, (Op("cholesky", (0,), (1,), {}, 1),), (0,), (1,))


def test_an_unknown_primitive_shares_nothing() -> None:
    graph = conservative_graph()
    rule = rule_for(graph.ops[0], graph)
    assert not rule.modelled
    assert rule.factors == (Factor(4, FactorRole.BLOCKED),) * 4
    assert str(rule).startswith("([i,j])->([k,l])")


def test_known_primitives_are_modelled() -> None:
    assert rule_of("dot_general", lambda x: x @ x, f32(4, 4)).modelled


@pytest.mark.parametrize("target", [(0, 5), (0,), (3, 0), (2, 0, 7)])
def test_empty_arrays_reshape_to_anything(target: tuple[int, ...]) -> None:
    values = (Value((0, 3), "float32"), Value(target, "float32"))
    op = Op("reshape", (0,), (1,), {"dimensions": None, "new_sizes": target}, 1)
    rule = rule_for(op, OpGraph(values, (op,), (0,), (1,)))
    assert all(factor.role is FactorRole.BLOCKED for factor in rule.factors)


def test_size_one_has_no_factor() -> None:
    rule = rule_of("add", lax.add, f32(1, 6), f32(1, 6))
    assert rule.operands == (((), (0,)), ((), (0,)))
    assert rule.factors == (Factor(6),)


def test_barriers_keep_their_operands_apart() -> None:
    """Two arrays of one shape pass a barrier together and stay unrelated."""
    rule = rule_of("optimization_barrier", lambda *x: lax.optimization_barrier(x), f32(4), f32(4))
    assert str(rule) == "([i],[j])->([i],[j])"


def test_letters_go_on_after_z() -> None:
    factors = tuple(Factor(2) for _ in range(30))
    rule = OpRule(factors, (tuple((i,) for i in range(30)),), ())
    assert str(rule).endswith("f26,f27,f28,f29])->()")
