"""mallocGame against its baselines, on programs that hold more than VMEM.

  make bench-malloc   (or: python -m benchmarks.malloc [--programs=SUBSTRING] [--chips=v5e:1x1]
                       [--assignments=40] [--compiles=2] [--play_seconds=120])

Every method may screen the same number of orders on the compiler (stopped after buffer assignment)
and compile the same number wholly; the sweep of whole-program options, which cannot be screened,
compiles each wholly. `sweep+alphazero` is what `autoshard.map_memory` does: the sweep, then the
agent under the best of its options; it uses the compilations of both. What is reported are whole
compilations only: compiler-estimated cycles plus simulated stalls of a step on one chip, not run on
hardware. "prod" keeps the compiler's own mapping where nothing beats it. Results are kept in
`runs/bench_malloc.jsonl`.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from autoshard import aot
from autoshard.machine import machine_model
from autoshard.memory_compiler import LoweredCompiler
from autoshard.topology import Topology
from benchmarks.malloc_programs import CHIPS, PROGRAMS, Program
from memory_planner.errors import MemoryPlannerError
from memory_planner.evaluation import Evaluator
from memory_planner.mapper import Budget, map_memory, proposed
from memory_planner.replay import replay
from memory_planner.session import Session, open_session
from memory_planner.strategies import STRATEGIES, Settings
from memory_planner.whole_program import OPTIONS, SWEEP, sweep

RESULTS = pathlib.Path("runs/bench_malloc.jsonl")
AGENT = "alphazero"
BOTH = f"sweep+{AGENT}"
GEOMETRIC_BAR, BARS = 0.02, {"skip_mlp v5e": 0.07, "strassen_4096 v5e": 0.045}


@dataclasses.dataclass(frozen=True)
class Result:
    """One method on one program.

    Attributes:
      program: with its chip.
      method: who proposed.
      settings: the budget.
      cycles, stalls: of the best confirmed; the compiler's own mapping not counted.
      default_cycles, default_stalls: of the compiler's own mapping.
      screened, compiled: compilations used, besides those for opening the program.
      seconds: all of it.
      note: why there is nothing, or the options found.
    """

    program: str
    method: str
    settings: str
    cycles: float
    stalls: float
    default_cycles: float
    default_stalls: float
    screened: int
    compiled: int
    seconds: float
    note: str

    @property
    def gain(self) -> float:
        """Share of the default's total that is saved; negative where it is worse."""
        return 1.0 - (self.cycles + self.stalls) / (self.default_cycles + self.default_stalls)

    @property
    def prod(self) -> float:
        """With the compiler's own mapping kept where nothing beats it."""
        return max(0.0, self.gain)


@dataclasses.dataclass(frozen=True)
class Remembering:
    """A compiler that answers the same question once; whole compilations are on the disk anyway."""

    compiler: LoweredCompiler
    answers: dict[tuple[tuple[str, str], ...], tuple[str, str]]

    def assign(self, options: Mapping[str, str], *, with_log: bool) -> tuple[str, str]:
        """See `memory_planner.evaluation.Compiler`."""
        key = (*sorted(options.items()), ("with_log", str(with_log)))
        if key not in self.answers:
            self.answers[key] = self.compiler.assign(options, with_log=with_log)
        return self.answers[key]

    def compile(self, options: Mapping[str, str]) -> str:
        """See `memory_planner.evaluation.Compiler`."""
        return self.compiler.compile(options)


def opened(session: Session, name: str) -> str:
    """What there is to decide, and the compiler's own mapping in our game beside its schedule."""
    problem, default = session.extracted.problem, session.default.confirmed
    assert default is not None
    replayed = replay(problem, session.extracted.mapping).total_ns
    cycles = replayed * session.evaluator.machine.clock_hz / 1e9
    return (
        f"{name}: {len(problem.buffers)} buffers, {problem.use_count} uses, default "
        f"{default.cycles / 1e6:.3f} M cycles + {default.stall_cycles / 1e6:.3f} M stalls; "
        f"replayed in the game {cycles / default.total - 1:+.2%} (bar 2%)"
    )


def measure(session: Session, name: str, method: str, arguments: argparse.Namespace) -> Result:
    """One method's best, in a session that no other method has taught anything."""
    begin = time.monotonic()
    before = session.evaluator.compiles
    if method == SWEEP:
        # Its own: what operations cost under other options is not to be taken for theirs.
        sweeper = Evaluator(session.evaluator.compiler, session.evaluator.machine)
        trials, screened = sweep(sweeper, OPTIONS, lambda _: None), 0
        compiled = sweeper.compiles
    elif method == BOTH:
        found = map_memory(
            session.evaluator.compiler, session.evaluator.machine, _budget(arguments)
        )
        trials, screened, compiled = [*found.trials], found.assignments, found.compiles
    else:
        settings = Settings(
            arguments.assignments, arguments.compiles, arguments.episodes, arguments.play_seconds,
            arguments.seed,
        )  # fmt: skip
        trials = proposed(session, method, settings, lambda _: None)
        screened = len({t.options for t in trials})
        compiled = session.evaluator.compiles - before
    default = session.default.confirmed
    assert default is not None
    done = [t for t in trials if t.confirmed is not None and t.options]
    best = min(done, key=lambda t: t.confirmed.total if t.confirmed else math.inf, default=None)
    step = best.confirmed if best is not None and best.confirmed is not None else default
    problems = [t.problem for t in trials if t.problem]
    return Result(
        name, method, _settings(arguments), step.cycles, step.stall_cycles, default.cycles,
        default.stall_cycles, screened, compiled,
        time.monotonic() - begin,
        json.dumps(dict(best.options))[:4000] if best is not None else "; ".join(problems)[:300],
    )  # fmt: skip


def _budget(arguments: argparse.Namespace) -> Budget:
    return Budget(
        assignments=arguments.assignments, compiles=arguments.compiles, strategy=AGENT,
        episodes=arguments.episodes, play_seconds=arguments.play_seconds, seed=arguments.seed,
    )  # fmt: skip


def _settings(arguments: argparse.Namespace) -> str:
    return f"{arguments.assignments} screened, {arguments.compiles} compiled"


def load() -> dict[tuple[str, str, str], Result]:
    """Results of earlier runs."""
    if not RESULTS.is_file():
        return {}
    rows = [Result(**json.loads(line)) for line in RESULTS.read_text().splitlines() if line]
    return {(row.program, row.method, row.settings): row for row in rows}


def run(program: Program, chip: str, arguments: argparse.Namespace) -> list[Result]:
    """All methods on one program, those that are missing measured."""
    name, known = f"{program.name} {chip.partition(':')[0]}", load()
    methods = [*STRATEGIES, SWEEP, BOTH]
    if arguments.methods:
        methods = arguments.methods.split(",")
    missing = [m for m in methods if (name, m, _settings(arguments)) not in known]
    if missing:
        lowered = LoweredCompiler(program.lower(chip), chip, aot.devices(chip))
        compiler, machine = Remembering(lowered, {}), machine_model(Topology.parse(chip))
        for method in missing:
            try:
                session = open_session(compiler, machine)
            except MemoryPlannerError as error:
                print(f"{name}: {error}", flush=True)
                return []
            if method == missing[0]:
                print(opened(session, name), flush=True)
            result = measure(session, name, method, arguments)
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(result)) + "\n")
            known[name, method, _settings(arguments)] = result
            print(f"  {name} {method}: {result.gain:+.2%} in {result.seconds:.0f} s", flush=True)
    return [k for m in methods if (k := known.get((name, m, _settings(arguments)))) is not None]


def table(results: list[list[Result]]) -> list[str]:
    """One line a program."""
    methods = [r.method for r in results[0]]
    lines = [
        f"{'program':>26} {'cycles':>10} {'stalls':>9} " + " ".join(f"{m:>14}" for m in methods)
    ]
    for rows in results:
        first = rows[0]
        gains = " ".join(f"{r.gain:>+14.2%}" for r in rows)
        lines.append(
            f"{first.program:>26} {first.default_cycles / 1e6:>9.3f}M "
            f"{first.default_stalls / 1e6:>8.3f}M {gains}"
        )
    return lines


def verdicts(results: list[list[Result]]) -> list[tuple[str, bool]]:
    """Each bar, and whether it is met."""
    agents = {r.program: r for rows in results for r in rows if r.method == AGENT}
    mean = math.exp(sum(math.log(1 - r.prod) for r in agents.values()) / max(1, len(agents)))
    found = [
        (
            f"geometric mean gain of {AGENT} {1 - mean:.2%}, bar {GEOMETRIC_BAR:.0%}",
            1 - mean >= GEOMETRIC_BAR,
        )
    ]
    for name, bar in BARS.items():
        if name in agents:
            found.append(
                (f"{name} {agents[name].prod:.2%}, bar {bar:.1%}", agents[name].prod >= bar)
            )
    for other in ("random", "evolution"):
        pairs = [
            (agents[r.program].prod, r.prod)
            for rows in results
            for r in rows
            if r.method == other and r.program in agents
        ]
        better, equal = sum(a > b for a, b in pairs), sum(a == b for a, b in pairs)
        found.append(
            (
                f"better than {other} on {better} of {len(pairs)} programs, equal on {equal}",
                2 * better > len(pairs),
            )
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--programs", default="", help="substrings, separated by commas")
    parser.add_argument("--chips", default=",".join(CHIPS))
    parser.add_argument("--methods", default="", help="separated by commas; default: all")
    parser.add_argument("--assignments", type=int, default=40)
    parser.add_argument("--compiles", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--play_seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wanted = [p for p in PROGRAMS if any(part in p.name for part in arguments.programs.split(","))]
    results = [run(p, chip, arguments) for chip in arguments.chips.split(",") for p in wanted]
    results = [rows for rows in results if rows]
    if not results:
        raise SystemExit("no program has contention")
    print(
        "gain over the compiler's own mapping (compiler-estimated cycles plus simulated stalls,"
        " not run on hardware)"
    )
    print("\n".join(table(results)))
    outcomes = verdicts(results)
    for line, is_met in outcomes:
        print(f"{'met   ' if is_met else 'MISSED'}  {line}")
    if not all(is_met for _, is_met in outcomes):
        raise SystemExit("a bar is missed")


if __name__ == "__main__":
    main()
