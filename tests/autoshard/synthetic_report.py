"""Reports with a real plan and a made-up compilation, to test how reports are shown.

Every figure of the timeline follows from a few round numbers, so that tests can say what must be
seen: a step of 1 s with four layers of 0.2 s each, one all-gather and one matmul a layer.
"""

import dataclasses
import functools
from typing import Any

import optax

import autoshard
import models
from autoshard.compile_report import CollectiveRow, Comparison, CompileReport
from autoshard.compiled_program import CompiledMemory, LargeBuffer, OutOfMemory
from autoshard.memory import MemoryEstimate
from autoshard.plan import Plan
from passes.hlo.timeline import (
    Basis,
    CollectiveCost,
    MemoryCurve,
    OperationCost,
    Span,
    Timeline,
)

LAYERS = 4
STEP_S = 1.0
GIB = 2**30
# What a model could be called to break out of the page; each must be shown as it stands here.
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    '"><svg onload=alert(3)>',
    "<a href='javascript:alert(4)'>x</a>",
    "%{x}<extra>&lt;b&gt;</extra>",
    "]]><!--",
)


@functools.cache
def tiny_plan(rules: str = "zero3+redco") -> Plan:
    """A plan of a small Llama on eight CPU devices."""
    spec = models.get("llama3_tiny", num_layers=2, vocab_size=64, max_seq_len=16)
    compiled: Any = autoshard.compile(
        spec.build(),
        "data=2,model=4",
        batch=spec.example_batch(8, 16),
        rules=rules,
        optimizer=optax.adamw(1e-3),
    )
    plan: Plan = compiled.plan
    return plan


def tiny_timeline() -> Timeline:
    """A loop of four layers, 0.05 s of exposed gather and 0.15 s of products each; 0.2 s after."""
    spans = [
        Span("while.1", "loop", "compute", 0.0, 0.8, "model.py:10 (stack)", "jit(step)/while",
             1, 0),
        Span("all-gather.2", "all-gather", "x", 0.0, 0.05, "model.py:12 (layer)",
             "jit(step)/gather", LAYERS, 1),
        Span("wait.3", "wait", "compute", 0.0, 0.05, "", "", LAYERS, 1),
        Span("fusion.4", "matmul", "compute", 0.05, 0.2, "model.py:14 (layer)",
             "jit(step)/dot_general", LAYERS, 1),
        Span("copy.5", "copy", "hbm copies", 0.1, 0.12, "", "jit(step)/copy", LAYERS, 1),
        Span("fusion.6", "elementwise", "compute", 0.8, 1.0, "optimizer.py:3 (update)",
             "jit(step)/add", 1, 0),
    ]  # fmt: skip
    operations = (
        OperationCost("fusion.4", "matmul", "model.py:14 (layer)", "jit(step)/dot_general", LAYERS,
                      0.6, 6e13, 3e11, Basis.CYCLES),
        OperationCost("fusion.6", "elementwise", "optimizer.py:3 (update)", "jit(step)/add", 1,
                      0.2, 1e10, 4e11, Basis.ROOFLINE),
        OperationCost("custom.7", "kernel", "attention.py:8 (attend)", "jit(step)/attend", LAYERS,
                      0.0, 0.0, 0.0, Basis.UNKNOWN),
    )  # fmt: skip
    collectives = (
        CollectiveCost("all-gather.2", "all-gather", "model.py:12 (layer)", "jit(step)/gather",
                       LAYERS, 512 * 2**20, 2, ("x",), 0.2, 0.15),
        CollectiveCost("all-reduce.8", "all-reduce", "model.py:15 (layer)", "jit(step)/psum",
                       LAYERS, 64 * 2**20, 4, ("y", "z"), 0.04, 0.01),
    )  # fmt: skip
    memory = MemoryCurve(
        (0.0, 0.1, 0.2, 0.8, 0.9),
        (24 * GIB, 46 * GIB, 35 * GIB, 62 * GIB, 24 * GIB),
        (
            ("fusion.9", 3 * GIB, "losses.py:31 (cross_entropy)"),
            ("fusion.4", GIB, "model.py:14 (layer)"),
        ),
    )
    return Timeline(
        "v5p:2x2x2", STEP_S, 0.8, 0.16, 0.02, 6.1e13, tuple(spans), operations, collectives, memory,
        (("custom-call Mystery", LAYERS),),
    )  # fmt: skip


def fitting() -> CompileReport:
    """A report of a program that fits."""
    estimate = MemoryEstimate(8 * GIB, 16 * GIB, 8 * GIB, GIB, 2**20, 20 * GIB)
    plan = tiny_plan()
    plan = dataclasses.replace(
        plan, topology="v5p:2x2x2", cost=dataclasses.replace(plan.cost, memory=estimate)
    )
    inputs = estimate.parameters_bytes + estimate.optimizer_bytes + estimate.other_bytes
    memory = CompiledMemory(inputs + 2 * GIB, inputs, inputs, 36 * GIB, 2**20)
    return CompileReport(
        plan=plan,
        topology=autoshard.Topology.parse("v5p:2x2x2"),
        memory=memory,
        out_of_memory=None,
        timeline=tiny_timeline(),
        model_flops=8 * 459e12 * STEP_S / 4,
        peak_flops=459e12,
        comparisons=(
            Comparison("memory, total", "bytes", float(53 * GIB), float(62 * GIB)),
            Comparison("floating-point operations", "flops", 6e13, 6.1e13),
            Comparison("step time", "seconds", None, STEP_S),
        ),
        collectives=(
            CollectiveRow("all-gather", "layers/attn/q_proj", 4, 4, 2**31, 2**31),
            CollectiveRow("all-reduce", "dot_general", 4, 5, 2**28, 2**29),
        ),
        compile_s=12.5,
        cached=False,
        versions=(("jax", "0.10.2"), ("libtpu", "0.0.42.1")),
        command="python -m experiments.plan --model=llama3_tiny",
    )


def too_large() -> CompileReport:
    """A report of a program that does not fit."""
    verdict = OutOfMemory(
        needed_bytes=120 * GIB,
        available_bytes=95 * GIB,
        buffers=(
            LargeBuffer(40 * GIB, "f32[64,4096,128256]", "jit(step)/log_softmax",
                        "losses.py:31 (cross_entropy)"),
            LargeBuffer(20 * GIB, "bf16[32,64,4096,4096]", "jit(step)/mul", ""),
        ),
        message="RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.",
    )  # fmt: skip
    return dataclasses.replace(
        fitting(), memory=None, out_of_memory=verdict, timeline=None, collectives=()
    )


def hostile() -> CompileReport:
    """Every string that a user or a model can choose is an attack."""
    report = fitting()
    plan, timeline = report.plan, report.timeline
    assert timeline is not None
    names = list(HOSTILE)

    def attack(index: int) -> str:
        return names[index % len(names)]

    arrays = tuple(
        dataclasses.replace(
            array,
            leaf=dataclasses.replace(array.leaf, path=f"{attack(i)}/{array.leaf.path}"),
            dims=tuple(attack(i + j) for j in range(len(array.dims))),
            rule=attack(i + 1),
            why=attack(i + 2),
        )
        for i, array in enumerate(plan.arrays)
    )
    evil_plan = dataclasses.replace(
        plan,
        program=dataclasses.replace(plan.program, name="".join(names)),
        arrays=arrays,
        notes=HOSTILE,
        unmodelled=tuple((name, 1) for name in names),
        rules=HOSTILE,
    )
    return dataclasses.replace(
        report,
        plan=evil_plan,
        timeline=_hostile_timeline(timeline),
        comparisons=tuple(Comparison(name, "bytes", 1.0, 2.0) for name in names),
        collectives=tuple(CollectiveRow(name, name, 1, 2, 3, 4) for name in names),
        versions=tuple((name, name) for name in names),
        command=" ".join(names),
    )


def _hostile_timeline(timeline: Timeline) -> Timeline:
    def evil(rows: Any, *fields: str) -> Any:
        return tuple(
            dataclasses.replace(row, **{f: HOSTILE[(i + j) % len(HOSTILE)]
                                        for j, f in enumerate(fields)})
            for i, row in enumerate(rows)
        )  # fmt: skip

    return dataclasses.replace(
        timeline,
        spans=evil(timeline.spans, "name", "stream", "source", "op_name"),
        operations=evil(timeline.operations, "name", "kind", "source", "op_name"),
        collectives=evil(timeline.collectives, "name", "kind", "source", "op_name"),
        memory=dataclasses.replace(
            timeline.memory, peak_names=tuple((name, GIB, name) for name in HOSTILE)
        ),
        unmodelled=tuple((name, 1) for name in HOSTILE),
    )


def busy(spans: int = 9000) -> CompileReport:
    """A report with more spans, operations and points than are drawn."""
    report = fitting()
    timeline = report.timeline
    assert timeline is not None
    step = STEP_S / spans
    many = tuple(
        Span(f"fusion.{i}", ("matmul", "elementwise", "copy")[i % 3],
             ("compute", "compute", "hbm copies")[i % 3],
             i * step, (i + 0.5 + i / spans / 2) * step,
             f"model.py:{i % 40}", "jit(step)/op", 1, 0)
        for i in range(spans)
    )  # fmt: skip
    operations = tuple(
        OperationCost(s.name, s.kind, s.source, s.op_name, 1, (spans - i) * 1e-7,
                      1e9 * (1 + i % 17), 1e6 * (1 + i % 29), Basis.CYCLES)
        for i, s in enumerate(many)
    )  # fmt: skip
    curve = MemoryCurve(
        tuple(s.start_s for s in many), tuple(GIB + (i * 7919) % GIB for i in range(spans)), ()
    )
    replaced = dataclasses.replace(timeline, spans=many, operations=operations, memory=curve)
    return dataclasses.replace(report, timeline=replaced)
