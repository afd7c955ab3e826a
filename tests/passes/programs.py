"""Programs of small models, and what they compute of the same random data."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from autoshard.adapters import adapt
from autoshard.losses import default_loss
from autoshard.precision import Precision
from autoshard.trace import trace_model
from passes import ir
from passes.accumulate import accumulated
from passes.compare import random_inputs
from passes.program import Leaf, Program, Role

# Options of the CPU compiler: code that runs once need not be fast, and this takes half the time.
FAST: dict[str, str | bool] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": "1",
}


def of_model(model: Any, batch: Any, loss: Any = default_loss, train: bool = True) -> Program:
    """The forward loss program of a Flax model."""
    return trace_model(adapt(model), loss, batch, train, Precision()).program


def of_spec(name: str, batch_size: int = 4, seq_len: int | None = 8, **overrides: Any) -> Program:
    """The forward loss program of a registered model."""
    spec = models.get(name, **overrides)
    try:
        batch = spec.example_batch(batch_size, seq_len)
    except ValueError:
        batch = spec.example_batch(batch_size)
    return of_model(spec.build(), batch)


def of_function(function: Any, params: Any, batch: Any) -> Program:
    """A program of `function(params, batch)`, a scalar; leaves are named by their paths."""
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, batch))
    jaxpr = jax.make_jaxpr(function)(*specs)
    leaves = []
    for role, tree in zip((Role.PARAMETER, Role.BATCH), specs, strict=True):
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            leaves.append(Leaf(name, role, tuple(x.shape), str(x.dtype)))
    return Program("function", jaxpr, tuple(leaves), ("loss",))


def loss_and_gradients(
    program: Program, drawn: Mapping[str, Any] | None = None
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss, and gradients by the user's own paths, by the program's gradient rule if it has one.

    Args:
      program: the program.
      drawn: inputs as `compare.random_inputs` draws them, which is the default.
    """
    drawn = random_inputs(program) if drawn is None else drawn
    inputs = []
    for leaf in program.whole_inputs:
        own = [drawn[f"{leaf.role.value}/{path}"] for path in leaf.parts or (leaf.path,)]
        inputs.append(jnp.stack(own) if leaf.parts else own[0])
    leaves = enumerate(program.whole_inputs)
    wrt = [i for i, leaf in leaves if leaf.role is Role.PARAMETER]

    def by_autodiff(*inputs: Any) -> tuple[Any, Any]:
        def loss(parameters: Any) -> Any:
            arguments = list(inputs)
            for i, x in zip(wrt, parameters, strict=True):
                arguments[i] = x
            return ir.as_function(program.jaxpr)(*arguments)[0]

        return jax.value_and_grad(loss)([inputs[i] for i in wrt])

    def by_rule(*inputs: Any) -> tuple[Any, Any]:
        rule = program.gradient or functools.partial(accumulated, program)
        outputs, gradients = rule(inputs, wrt, [None] * len(inputs))
        return outputs[0], gradients

    ruled = program.gradient is not None or program.split is not None
    lowered = jax.jit(by_rule if ruled else by_autodiff).lower(*inputs)
    value, gradients = lowered.compile(FAST)(*inputs)
    found = {}
    for i, gradient in zip(wrt, gradients, strict=True):
        leaf = program.whole_inputs[i]
        for k, path in enumerate(leaf.parts or (leaf.path,)):
            found[path] = np.asarray(gradient[k] if leaf.parts else gradient, np.float32)
    return float(value), found


def assert_same(
    before: Program, after: Program, loss: float = 1e-5, gradient: float = 1e-4
) -> None:
    """Loss and gradients agree; gradients relative to the greatest of all."""
    value, gradients = loss_and_gradients(before)
    other, others = loss_and_gradients(after)
    assert abs(value - other) <= loss * max(abs(value), 1.0), (value, other)
    assert gradients.keys() == others.keys()
    scale = max((float(np.max(np.abs(g))) for g in gradients.values()), default=0.0)
    for path, g in gradients.items():
        worst = float(np.max(np.abs(g - others[path]), initial=0.0))
        assert worst <= gradient * max(scale, 1e-30), (path, worst, scale)


def count(program: Program, primitive: str) -> int:
    """How many equations of a primitive the program has, nested ones included."""
    eqns = ir.equations(ir.closed(program.jaxpr)[0])
    return sum(eqn.primitive.name == primitive for eqn in eqns)
