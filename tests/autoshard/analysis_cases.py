"""What the tests of the analysis share: analysed models and functions, labels, plain attention."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import models
from autoshard import losses
from autoshard.adapters import adapt
from autoshard.dim_names import DimNames, name_dims
from autoshard.named_dims import Analysis, analyse
from autoshard.precision import Precision
from autoshard.structure import Structure, find_structure
from autoshard.trace import gradient_program, trace_function, trace_model
from passes.program import Program, Role

Tree = Any


@dataclasses.dataclass(frozen=True)
class Examined:
    """A forward program, its analysis and that of its gradient."""

    program: Program
    analysis: Analysis
    structure: Structure
    names: DimNames

    @functools.cached_property
    def gradient(self) -> Analysis:
        """The analysis of the gradient program."""
        return analyse(*gradient_program(self.program))

    def position(self, path: str) -> int:
        """The input of that path."""
        paths = [leaf.path for leaf in self.program.inputs]
        assert path in paths, f"{path} is not among {paths}"
        return paths.index(path)

    def label(self, path: str) -> tuple[str, ...]:
        """The dimension names of an input."""
        return self.names.label(self.analysis.leaf_dims(self.position(path)))

    def labels(self) -> dict[str, tuple[str, ...]]:
        """The dimension names of all inputs with dimensions."""
        return {leaf.path: self.label(leaf.path) for leaf in self.program.inputs if leaf.shape}

    def dims(self, path: str, analysis: Analysis | None = None) -> tuple[tuple[int, ...], ...]:
        """The atoms of an input's dimensions."""
        return (analysis or self.analysis).leaf_dims(self.position(path))

    def conflict_shapes(self, analysis: Analysis | None = None) -> set[tuple[int, ...]]:
        """Shapes of the values that carry one class twice."""
        analysis = analysis or self.analysis
        return {analysis.graph.shape(value) for value in analysis.conflicts}


def examine(program: Program) -> Examined:
    """Analyse a program."""
    analysis = analyse(program)
    structure = find_structure(analysis)
    return Examined(program, analysis, structure, name_dims(analysis, structure))


def spec(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An abstract array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def examine_function(function: Callable[..., Any], params: Tree, batch: Tree) -> Examined:
    """Analyse `function(params, batch)`; paths of inputs are `p/...` and `b/...`."""
    program, _ = trace_function(function, (params, batch), (Role.PARAMETER, Role.BATCH))
    leaves = tuple(
        dataclasses.replace(
            leaf, path=("p" if leaf.role is Role.PARAMETER else "b") + leaf.path.lstrip("01")
        )
        for leaf in program.inputs
    )
    return examine(dataclasses.replace(program, inputs=leaves))


@functools.cache
def examine_model(name: str, batch_size: int = 16, **overrides: Any) -> Examined:
    """Analyse a registered model with its default loss, in training."""
    model = models.get(name, **overrides)
    return examine_flax(model.build(), model.example_batch(batch_size))


def examine_flax(model: Any, batch: Any, loss: losses.Loss = losses.default_loss) -> Examined:
    """Analyse a Flax model with a loss, in training."""
    return examine(trace_model(adapt(model), loss, batch, True, Precision()).program)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention of [B, S, H, K] arrays."""
    scores = jnp.einsum("bshk,bthk->bhst", q, k)
    positions = jnp.arange(q.shape[1])
    visible = positions[None, None, :, None] >= positions[None, None, None, :]
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e9), axis=-1)
    return jnp.einsum("bhst,bthk->bshk", weights, v)
