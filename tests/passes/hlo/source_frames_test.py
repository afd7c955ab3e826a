"""Source lines from the tables at the head of HLO text."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

from passes.hlo.parse import parse

TABLES = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/train.py"
2 "/home/me/.venv/lib/python3.11/site-packages/flax/core.py"
3 "/home/me/model.py"

FunctionNames
1 "main"
2 "apply"
3 "Block.__call__"
4 "make.<locals>.loss"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10 column=4 end_column=20}
2 {file_name_id=2 function_name_id=2 line=20 end_line=20 column=4 end_column=20}
3 {file_name_id=3 function_name_id=3 line=30 end_line=30 column=4 end_column=20}
4 {file_name_id=2 function_name_id=2 line=40 end_line=40 column=4 end_column=20}
5 {file_name_id=1 function_name_id=4 line=50 end_line=50 column=4 end_column=20}
6 {file_name_id=9 function_name_id=4 line=60}
7 {file_name_id=1 line=70}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}
5 {file_location_id=2 parent_frame_id=1}
6 {file_location_id=4 parent_frame_id=6}
7 {file_location_id=5 parent_frame_id=1}
8 {file_location_id=6 parent_frame_id=2}
9 {file_location_id=4 parent_frame_id=10}
10 {file_location_id=4 parent_frame_id=77}
11 {file_location_id=7 parent_frame_id=1}

ENTRY %main (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %n = f32[2]{0} negate(%p), metadata={op_name="a" stack_frame_id=FRAME}
}
"""


@pytest.mark.parametrize(
    ("frame", "source"),
    [
        (1, "train.py:10 (main)"),
        (2, "train.py:10 (main)"),  # a library's frame, called by frame 1: the parent's number is 2
        (3, "model.py:30 (Block.__call__)"),
        (4, "model.py:30 (Block.__call__)"),
        (5, "core.py:20 (apply)"),  # all of its frames are a library's: the innermost
        (6, "core.py:40 (apply)"),
        (7, "train.py:50 (loss)"),
        (8, "train.py:10 (main)"),  # its own file is not in the table
        (9, "core.py:40 (apply)"),  # its own parent
        (10, "core.py:40 (apply)"),  # of a parent that is not there
        (11, "train.py:70"),
        (12, ""),
    ],
)
def test_frames(frame: int, source: str) -> None:
    module = parse(TABLES.replace("FRAME", str(frame)))
    assert module.unknown == ()
    assert module.source(module.entry_computation.root) == source
    assert module.source(module.entry_computation.by_name["p"]) == ""


def test_a_line_in_the_metadata_itself() -> None:
    metadata = 'source_file="/home/me/a b.py" source_line=17}'
    module = parse(TABLES.replace("stack_frame_id=FRAME}", metadata))
    assert module.source(module.entry_computation.root) == "a b.py:17"


def test_tables_of_text_that_is_damaged_are_counted() -> None:
    module = parse(TABLES.replace("FileNames\n", "FileNumes\n"))
    assert dict(module.unknown)["line outside computations"] == 4
    assert module.source(module.entry_computation.root) == ""


def user(x: jax.Array) -> jax.Array:
    return jnp.sum(optax.l2_loss(x))


def test_a_compiled_program_names_the_line_that_called_the_library() -> None:
    text = jax.jit(user).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile().as_text()
    assert text is not None and "/optax/" in text
    module = parse(text)
    _, first = inspect.getsourcelines(user)
    found = {module.source(i) for c in module.computations.values() for i in c.instructions}
    assert found - {""} == {f"source_frames_test.py:{first + 1} (user)"}
