"""Work of custom calls: what their authors wrote, and attention and library products by hand."""

import pytest

from passes.hlo.kernels import KernelWork, kernel_work, target_of
from tests.passes.hlo.texts import in_entry, module_of


def work(entry: str, name: str = "r") -> KernelWork | None:
    return kernel_work(*in_entry(module_of(entry), name))


# As Mosaic writes what `pl.CostEstimate(flops=1234, transcendentals=56, bytes_accessed=789)` says.
ESTIMATE = (
    '{"flags":[],"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"1234",'
    '"transcendentals":"56","bytes_accessed":"789","remote_bytes_transferred":"0"},"x":true}}'
)


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        (ESTIMATE, KernelWork(1234, 56, 789)),
        (ESTIMATE.replace('"1234"', "1234"), KernelWork(1234, 56, 789)),
        (ESTIMATE.replace("bytes_accessed", "bytesAccessed"), KernelWork(1234, 56, 789)),
        (ESTIMATE.replace('"1234"', '"-1"'), KernelWork(0, 56, 789)),
        (ESTIMATE.replace('"1234"', '"²"'), KernelWork(0, 56, 789)),
        (ESTIMATE.replace('"1234"', "[[1]]"), KernelWork(0, 56, 789)),
        (ESTIMATE.replace('"1234"', '"' + "9" * 5000 + '"'), KernelWork(0, 56, 789)),
        ('{"custom_call_config":{"cost_estimate":{}}}', KernelWork(0, 0, 0)),
        ('{"custom_call_config":{"cost_estimate":7}}', None),
        ('{"custom_call_config":[]}', None),
        ("{}", None),
    ],
)
def test_what_the_author_wrote(note: str, expected: KernelWork | None) -> None:
    entry = f"""
    %p = f32[8,128] parameter(0)
    ROOT %r = f32[8,128] custom-call(%p), custom_call_target="tpu_custom_call", \
backend_config={note}
    """
    assert work(entry) == expected
    assert target_of(module_of(entry).entry_computation.root) == "tpu_custom_call"


BATCH, HEADS, QUERIES, KEYS, WIDTH = 3, 4, 512, 1024, 64
SPLASH = f"""
%q = bf16[{BATCH},{HEADS},{QUERIES},{WIDTH}] parameter(0)
%k = bf16[{BATCH},{HEADS},{KEYS},{WIDTH}] parameter(1)
%v = bf16[{BATCH},{HEADS},{KEYS},{WIDTH}] parameter(2)
%next = s8[1,4,8] parameter(3)
%rows = s32[{QUERIES},128] parameter(4)
%call = (f32[{BATCH},{QUERIES},128], bf16[{BATCH},{HEADS},{QUERIES},{WIDTH}]) \
custom-call(OPERANDS), custom_call_target="tpu_custom_call"
"""
PAIRS = BATCH * HEADS * QUERIES * KEYS


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("splash_mha_fwd_residuals.3", 2),
        ("splash_mqa_fwd.1", 2),
        ("splash_mha_dkv_no_residuals.1", 4),
        ("splash_mha_dq_no_residuals", 3),
    ],
)
def test_splash_attention(name: str, products: int) -> None:
    """Products of [queries, width] x [width, keys] or alike, for every head of every example."""
    named = SPLASH.replace("%call", f"%{name}")
    full = work(named.replace("OPERANDS", "%next, %q, %k, %v"), name)
    assert full == KernelWork(2 * products * PAIRS * WIDTH, PAIRS, None)


def test_splash_attention_with_a_causal_mask() -> None:
    """Of 8 x 8 blocks a causal mask visits 1 + 2 + ... + 8 = 36."""
    causal = work(SPLASH.replace("%call", "%splash_mha_fwd").replace(
        "OPERANDS", "%next, %q, %k, %v, %rows"
    ), "splash_mha_fwd")  # fmt: skip
    assert causal is not None
    assert causal.flops == 2 * 2 * PAIRS * WIDTH * 36 / 64
    assert causal.transcendentals == PAIRS * 36 / 64


def test_splash_attention_by_its_place_in_the_program() -> None:
    """Where the instruction has another name, JAX's name of the operation tells."""
    place = 'metadata={op_name="jit(f)/shard_map/splash_mha_dq_no_residuals/pallas_call"}'
    entry = SPLASH.replace("OPERANDS", "%q, %k, %v").rstrip() + f", {place}\n"
    found = work(entry, "call")
    assert found is not None and found.flops == 2 * 3 * PAIRS * WIDTH


def test_attention_without_its_operands() -> None:
    named = SPLASH.replace("%call", "%splash_mha_fwd")
    assert work(named.replace("OPERANDS", "%next, %q"), "splash_mha_fwd") is None


@pytest.mark.parametrize(
    ("shapes", "note", "flops"),
    [
        (("64,128", "128,256", "64,256"), "{}", 2 * 64 * 128 * 256),
        (("128,64", "256,128", "64,256"), "{}", 2 * 64 * 128 * 256),  # transposed operands
        (
            ("5,64,128", "5,128,256", "5,64,256"),
            '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_batch_dimensions":["0"]}}}',
            2 * 5 * 64 * 128 * 256,
        ),
        (
            ("5,64,128", "5,128,256", "5,64,256"),
            '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_batch_dimensions":[0]}}}',
            2 * 5 * 64 * 128 * 256,
        ),
    ],
)
def test_products_of_a_gpu_library(shapes: tuple[str, str, str], note: str, flops: float) -> None:
    left, right, out = shapes
    found = work(
        f"""
        %a = bf16[{left}] parameter(0)
        %b = bf16[{right}] parameter(1)
        ROOT %r = (bf16[{out}], s8[4096]) custom-call(%a, %b), \
custom_call_target="__cublas$gemm", backend_config={note}
        """
    )
    assert found is not None and found.flops == pytest.approx(flops)


@pytest.mark.parametrize("dims", ["7", "[[0]]", '["' + "9" * 5000 + '"]', "null", "{}"])
def test_notes_of_a_library_that_are_damaged(dims: str) -> None:
    note = (
        f'{{"gemm_backend_config":{{"dot_dimension_numbers":{{"lhs_batch_dimensions":{dims}}}}}}}'
    )
    found = work(
        f"""
        %a = bf16[4,8] parameter(0)
        %b = bf16[8,2] parameter(1)
        ROOT %r = bf16[4,2] custom-call(%a, %b), custom_call_target="__cublas$gemm", \
backend_config={note}
        """
    )
    assert found is not None and found.flops == pytest.approx(2 * 4 * 8 * 2)


def test_convolutions_of_a_gpu_library() -> None:
    found = work(
        """
        %a = f32[2,14,14,8] parameter(0)
        %k = f32[3,5,8,16] parameter(1)
        ROOT %r = (f32[2,14,14,16], u8[0]) custom-call(%a, %k), window={size=3x5 pad=1_1x2_2}, \
dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward"
        """
    )
    assert found is not None and found.flops == 2 * (2 * 14 * 14 * 16) * (3 * 5) * 8


def test_library_calls_of_nothing() -> None:
    call = 'custom_call_target="__cublas$gemm"'
    assert work(f"ROOT %r = f32[2,2] custom-call(), {call}") is None
    empty = f"%a = f32[0,2] parameter(0)\nROOT %r = f32[0,2] custom-call(%a, %a), {call}"
    assert work(empty) is None
    unknown = 'ROOT %r = f32[2,2] custom-call(), custom_call_target="mine"'
    assert work(unknown) is None
