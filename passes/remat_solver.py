"""The decision for all blocks under one budget, as an integer program (HiGHS through SciPy).

    minimise    length * (sum again[e] * seconds[e] + sum (saved[v] + host[v]) * bytes[v] / hbm)
    over blocks
    subject to  saved[v] + host[v] + again[maker(v)] >= 1          v needed
                saved[u] + host[u] + again[maker(u)] >= again[e]   e reads u
                sum length * bytes[v] * saved[v] <= budget
                sum bytes[v] * host[v] / host_rate <= forward_s    each block, where hidden

`saved` and `host` are binary. With those given, the least `again` is 0 or 1 by itself.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from passes.errors import PassError
from passes.remat_problem import (
    BlockChoice,
    BlockProblem,
    Choice,
    Rates,
    block_seconds,
    kept_bytes,
    kept_traffic_bytes,
    repeated_steps,
)

_GAP = 1e-4
_TIME_LIMIT_S = 60.0
_PASSES = 6.0  # traffic of both passes, in that of the forward pass; see solve_any
_WORTHWHILE = 1e-3  # the share of its time by which another candidate must be able to win
_TIE = 1e-6  # of a second's worth: between choices of equal time the smaller one


@dataclasses.dataclass
class _Rows:
    """Rows `sum coefficient * x >= low` of the program."""

    entries: list[tuple[int, int, float]] = dataclasses.field(default_factory=list)
    low: list[float] = dataclasses.field(default_factory=list)

    def add(self, terms: Sequence[tuple[int, float]], low: float) -> None:
        self.entries += [(len(self.low), column, x) for column, x in terms]
        self.low.append(low)


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Where a block's variables stand.

    Attributes:
      saved, host: by value.
      again: by equation.
    """

    saved: dict[int, int]
    host: dict[int, int]
    again: dict[int, int]


@dataclasses.dataclass(frozen=True)
class _Model:
    """The program of all blocks.

    Attributes:
      columns: where each block's variables stand.
      objective: of each variable, in `scale_s`.
      integral: 1 for variables that are whole numbers.
      memory: bytes of each variable under the budget.
      rows: the constraints, the budget's last.
      scale_s: seconds that the objective is measured in.
    """

    columns: list[_Columns]
    objective: np.ndarray
    integral: np.ndarray
    memory: np.ndarray
    rows: _Rows
    scale_s: float


def _model(blocks: Sequence[BlockProblem], budget_bytes: float, rates: Rates) -> _Model:
    columns, count = [], 0
    for block in blocks:
        held = block.nameable
        saved = {v: count + k for k, v in enumerate(held)}
        count += len(held)
        host = {v: count + k for k, v in enumerate(held)} if rates.offload else {}
        count += len(host)
        again = {e: count + k for k, e in enumerate(range(len(block.steps)))}
        count += len(again)
        columns.append(_Columns(saved, host, again))
    objective, integral = np.zeros(count), np.zeros(count)
    memory, rows = np.zeros(count), _Rows()
    for block, c in zip(blocks, columns, strict=True):
        _block(block, c, rates, objective, integral, memory, rows)
    scale_s = _forward_s(blocks) or 1.0
    total = float(memory.sum()) or 1.0
    rows.add([(k, -x / total) for k, x in enumerate(memory) if x], -budget_bytes / total)
    objective = objective / scale_s + _TIE * memory / total
    return _Model(columns, objective, integral, memory, rows, scale_s)


def solve(blocks: Sequence[BlockProblem], budget_bytes: float, rates: Rates) -> Choice:
    """The best decision.

    Args:
      blocks: the loops.
      budget_bytes: of a device, for what all iterations of all blocks save on it.
      rates: what keeping costs.

    Raises:
      PassError: even the smallest choice does not fit the budget.
    """
    model = _model(blocks, budget_bytes, rates)
    result = _optimise(model.objective, model.integral, model.rows)
    if result is None:
        rows, memory = _without_last(model.rows), model.memory / (model.memory.sum() or 1.0)
        least = _optimise(memory, model.integral, rows)
        least_bytes = float(model.memory @ least[0]) if least is not None else float("inf")
        raise PassError(
            f"a budget of {_mib(budget_bytes)} a device holds less than what must be kept for the "
            f"backward pass, {_mib(least_bytes)} (the values that loops carry): raise budget_bytes"
            + (", let transfers show" if rates.offload else ", allow offload='auto'")
            + ", or shard the activations further"
        )
    return _choice(blocks, model.columns, result[0], rates, result[1])


def solve_any(
    candidates: Sequence[Sequence[BlockProblem]], budget_bytes: float, rates: Rates
) -> tuple[int, Choice]:
    """The best decision for any of several programs of the same result.

    The linear relaxation of each, a bound of what it can reach, says in which order they are tried
    and which need not be.

    Args:
      candidates: the loops of each; what a forward pass takes longer than that of the first counts
        six times: so much more is read and written in both passes where products are in two parts
        (operands of three products, and the two parts of each parameter's gradient).
      budget_bytes: as for `solve`.
      rates: as for `solve`.

    Returns:
      Which candidate, and its decision; `seconds` include what is counted besides.

    Raises:
      PassError: not even the smallest choice of any fits the budget.
    """
    least = _forward_s(candidates[0])
    bounds = {}
    for i, blocks in enumerate(candidates[1:], 1):
        longer = _PASSES * max(0.0, _forward_s(blocks) - least)
        model = _model(blocks, budget_bytes, rates)
        relaxed = _optimise(model.objective, np.zeros(len(model.integral)), model.rows)
        if relaxed is not None:
            bounds[i] = (longer + float(model.objective @ relaxed[0]) * model.scale_s, longer)
    best: tuple[int, Choice] | None = None
    try:
        best = 0, solve(candidates[0], budget_bytes, rates)
    except PassError:
        if not bounds:
            raise
    for i, (bound, longer) in sorted(bounds.items(), key=lambda item: item[1]):
        if best is not None and bound >= (1 - _WORTHWHILE) * best[1].seconds:
            break
        one = solve(candidates[i], budget_bytes, rates)
        one = dataclasses.replace(one, seconds=one.seconds + longer)
        if best is None or one.seconds < best[1].seconds:
            best = i, one
    assert best is not None
    return best


def _forward_s(blocks: Sequence[BlockProblem]) -> float:
    return sum(block.length * block.forward_s for block in blocks)


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


def _block(
    block: BlockProblem,
    c: _Columns,
    rates: Rates,
    objective: np.ndarray,
    integral: np.ndarray,
    memory: np.ndarray,
    rows: _Rows,
) -> None:
    for e, column in c.again.items():
        objective[column] = block.length * block.steps[e].seconds
    for kept in (c.saved, c.host):
        for v, column in kept.items():
            integral[column] = 1
            traffic_bytes = kept_traffic_bytes(block, v)
            objective[column] = block.length * traffic_bytes / rates.hbm_bytes_per_s
    for v, column in c.saved.items():
        memory[column] = block.length * block.values[v].size_bytes

    def there(v: int) -> list[tuple[int, float]]:
        maker = block.values[v].maker
        found = [(kept[v], 1.0) for kept in (c.saved, c.host) if v in kept]
        return found if maker is None else [*found, (c.again[maker], 1.0)]

    for v in block.needed:
        if not block.values[v].free:
            rows.add(there(v), 1.0)
    for e, step in enumerate(block.steps):
        for u in step.reads:
            if not block.values[u].free:
                rows.add([*there(u), (c.again[e], -1.0)], 0.0)
    if c.host and rates.hidden:
        most = block.forward_s * rates.host_bytes_per_s or 1.0
        rows.add([(k, -block.values[v].size_bytes / most) for v, k in c.host.items()], -1.0)


def _without_last(rows: _Rows) -> _Rows:
    last = len(rows.low) - 1
    return _Rows([entry for entry in rows.entries if entry[0] != last], rows.low[:-1])


def _optimise(
    objective: np.ndarray, integral: np.ndarray, rows: _Rows
) -> tuple[np.ndarray, bool] | None:
    """(values of the variables, whether they are proved best), or None if there are none."""
    count = len(objective)
    if not count:
        return np.zeros(0), True
    row, column, value = zip(*rows.entries, strict=True) if rows.entries else ((), (), ())
    matrix = csr_matrix((value, (row, column)), shape=(len(rows.low), count))
    result = milp(
        objective,
        integrality=integral,
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, np.array(rows.low), np.inf),
        options={"mip_rel_gap": _GAP, "time_limit": _TIME_LIMIT_S},
    )
    if result.x is None:
        return None
    return result.x, result.status == 0


def _choice(
    blocks: Sequence[BlockProblem],
    columns: Sequence[_Columns],
    x: np.ndarray,
    rates: Rates,
    proved: bool,
) -> Choice:
    choices = []
    for block, c in zip(blocks, columns, strict=True):
        saved = frozenset(v for v, k in c.saved.items() if x[k] > 0.5)
        host = frozenset(v for v, k in c.host.items() if x[k] > 0.5) - saved
        choices.append(trimmed(block, saved, host))
    seconds = sum(
        block_seconds(block, choice, rates) for block, choice in zip(blocks, choices, strict=True)
    )
    return Choice(tuple(choices), seconds, proved)


def trimmed(block: BlockProblem, saved: frozenset[int], host: frozenset[int]) -> BlockChoice:
    """A decision from what is kept, without what nothing reads.

    Raises:
      PassError: something that the backward pass needs is neither kept nor can be made again.
    """
    repeated = repeated_steps(block, saved | host)
    if repeated is None:
        raise PassError(
            f"{block.label}: what is kept does not suffice for the backward pass: save the values "
            "that the loop carries"
        )
    read = {v for e in repeated for v in block.steps[e].reads} | set(block.needed)
    return BlockChoice(saved & read, host & read, repeated)


def saved_bytes(blocks: Sequence[BlockProblem], choice: Choice) -> float:
    """Bytes of a device that a decision saves on it."""
    pairs = zip(blocks, choice.blocks, strict=True)
    return sum(kept_bytes(block, one.saved) for block, one in pairs)
