"""Whether an optimizer does to a stack of parameters what it does to each of them.

Adam, SGD or clipping by the global norm do; Adafactor, LAMB, Muon, a mask by rank or clipping by
block do not. The update's own program decides: what happens to each parameter must be elementwise
(sums over all parameters alike may enter as scalars), and the same for the stack as for its parts.
"""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import optax

from autoshard.adapters import path_name
from autoshard.optimizer_paths import parameter_of
from autoshard.sharding_rules.elementwise import ELEMENTWISE
from autoshard.stacked_state import Stacking
from passes import ir
from passes.inline_calls import inline_calls

_ELEMENTWISE = frozenset(ELEMENTWISE)


class _NotElementwise(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class _Of:
    """What a value is.

    Attributes:
      text: how it is computed, equal for equal computations.
      owner: the parameter whose elements it follows; None for scalars of no parameter.
      sums: for a sum that is not complete, (parameter, what is summed) pairs.
    """

    text: Hashable
    owner: str | None = None
    sums: tuple[tuple[str, Hashable], ...] = ()


def is_elementwise(optimizer: optax.GradientTransformation, stacking: Stacking) -> bool:
    """Whether updating the stacked tree is updating the user's, stacked."""
    user = stacking.params
    try:
        own = _updates(optimizer, user)
        stacked = _updates(optimizer, stacking.stacked_params(user))
    except _NotElementwise:
        return False
    for leaf in stacking.leaves:
        parts = leaf.parts or (leaf.path,)
        if any(own.get(part) != stacked.get(leaf.path) for part in parts):
            return False
    return True


def _updates(optimizer: optax.GradientTransformation, params: Any) -> dict[str, Hashable]:
    """For each parameter how its update and its optimizer state are computed."""
    state = jax.eval_shape(optimizer.init, params)
    update = optax.with_extra_args_support(optimizer).update

    def function(gradients: Any, state: Any, params: Any, value: Any) -> Any:
        return update(gradients, state, params, value=value, grad=gradients)

    value = jax.ShapeDtypeStruct((), "float32")
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(params, state, params, value)
    jaxpr, consts = ir.closed(inline_calls(traced))
    paths = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    names = _names({"gradient": params, "state": state, "parameter": params, "value": value})
    env: dict[Any, _Of] = {}
    for var, name in zip(jaxpr.invars, names, strict=True):
        owner = _owner(name, paths)
        env[var] = _Of(name.removesuffix(owner or ""), owner)
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        env[var] = _Of(("constant", str(const)))
    for eqn in jaxpr.eqns:
        found = _equation(eqn, [_read(env, x) for x in eqn.invars], paths)
        env.update((var, found) for var in eqn.outvars)
    results: dict[str, list[Any]] = {path: [] for path in paths}
    for name, atom in zip(
        _names({"update": shapes[0], "state": shapes[1]}), jaxpr.outvars, strict=True
    ):
        owner, of = _owner(name, paths), _read(env, atom)
        if owner is None:
            continue
        if of.owner not in (owner, None) or of.sums:
            raise _NotElementwise
        results[owner].append((name.removesuffix(owner), of.text))
    return {path: tuple(parts) for path, parts in results.items()}


def _names(trees: Mapping[str, Any]) -> list[str]:
    return [
        f"{kind}/{path_name(path)}"
        for kind, tree in trees.items()
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _owner(name: str, paths: set[str]) -> str | None:
    _, _, path = name.partition("/")  # without its kind
    return parameter_of(path, paths)


def _read(env: Mapping[Any, _Of], atom: Any) -> _Of:
    return _Of(("literal", str(atom.val))) if ir.is_literal(atom) else env[atom]


def _equation(eqn: ir.JaxprEqn, operands: list[_Of], paths: set[str]) -> _Of:
    name = eqn.primitive.name
    if name in ("add", "add_any") and any(x.sums for x in operands):
        return _added(operands)
    operands = [_complete(x, paths) for x in operands]
    owners = {x.owner for x in operands if x.owner is not None}
    if len(owners) > 1 or len(eqn.outvars) != 1:
        raise _NotElementwise
    owner = owners.pop() if owners else None
    texts = tuple(x.text for x in operands)
    if name == "reduce_sum" and owner is not None:
        if len(eqn.params["axes"]) != len(ir.spec(eqn.invars[0]).shape):
            raise _NotElementwise
        return _Of((), sums=((owner, texts),))
    if name == "broadcast_in_dim" and owner is None and not ir.spec(eqn.invars[0]).shape:
        return operands[0]
    if name not in _ELEMENTWISE and owner is not None:
        raise _NotElementwise
    return _Of((name, texts, _settings(eqn)), owner)


def _settings(eqn: ir.JaxprEqn) -> str:
    own = {k: str(v) for k, v in eqn.params.items() if k not in ("sharding", "shape")}
    return str(sorted(own.items()))


def _added(operands: list[_Of]) -> _Of:
    """A sum of sums; zero may start it."""
    if any(
        not x.sums and x.text != ("literal", "0.0") and x.text != ("literal", "0") for x in operands
    ):
        raise _NotElementwise
    return _Of((), sums=tuple(sorted((s for x in operands for s in x.sums), key=str)))


def _complete(of: _Of, paths: set[str]) -> _Of:
    """A sum over every parameter, each summed alike, as a scalar of none."""
    if not of.sums:
        return of
    summed, texts = [p for p, _ in of.sums], {text for _, text in of.sums}
    if sorted(summed) != sorted(paths) or len(texts) != 1:
        raise _NotElementwise
    return _Of(("sum over all parameters", texts.pop()))
