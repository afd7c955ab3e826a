"""Golden files: real programs of the three compilers, and what the reader finds in them."""

import dataclasses
import json

import pytest

from passes.hlo.parse import parse
from tests.passes.hlo.golden_findings import findings, trip_counts
from tests.passes.hlo.golden_programs import PROGRAMS, GoldenProgram
from tests.passes.hlo.renew_golden import without_folders

every_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)


@every_program
def test_findings_are_as_recorded(program: GoldenProgram) -> None:
    recorded = json.loads(program.found_path.read_text())
    assert recorded["settings"] == dataclasses.asdict(program)
    found = findings(program.read(), program.topology)
    assert found == recorded["found"]
    assert found["unknown"] == [] and found["unmodelled"] == []


@every_program
def test_closed_forms(program: GoldenProgram) -> None:
    recorded = json.loads(program.found_path.read_text())["found"]
    assert recorded["flops"] == program.flops
    # Forward and backward; the compiler may take an iteration out of a loop.
    assert [
        n for n in recorded["trip_counts"] if n not in (program.layers, program.layers - 1)
    ] == []
    assert len(recorded["trip_counts"]) == 2
    # A program of several slices is compiled for one of them.
    assert recorded["device_count"] == (4 if program.name == "tpu_slices" else 8)
    # Megatron: two all-reduces of the activations a layer, forward and backward.
    wide = 4 if program.name == "cpu" else 2  # the CPU compiler reduces bfloat16 in float32
    activation = program.batch // 2 * program.seq_len * program.embed * wide
    reduced = [
        c["repeats"] * c["count"]
        for c in recorded["collectives"]
        if (c["kind"], c["payload_bytes"], c["group_size"]) == ("all-reduce", activation, 4)
    ]
    assert sum(reduced) == 4 * program.layers


@every_program
def test_trip_counts_without_the_compilers_notes(program: GoldenProgram) -> None:
    text = program.read()
    noted = ("known_trip_count" in text, trip_counts(parse(text)))
    assert noted[0] == (program.name in ("cpu", "gpu"))
    assert trip_counts(parse(text.replace("known_trip_count", "other"))) == noted[1]


@every_program
def test_sources_are_lines_of_the_program(program: GoldenProgram) -> None:
    sources = json.loads(program.found_path.read_text())["found"]["sources"]
    assert {source.split(":")[0] for source in sources} == {"golden_programs.py"}
    assert {source.split("(")[-1] for source in sources} >= {"layer)", "_loss)", "<lambda>)"}


def test_folders_of_a_machine_are_left_out() -> None:
    text = (
        '1 "/home/me/project/tests/a.py"\n2 "/v/lib/python3.11/site-packages/jax/b.py"\n3 "c.py"\n'
    )
    assert without_folders(text) == '1 "a.py"\n2 "/site-packages/jax/b.py"\n3 "c.py"\n'
