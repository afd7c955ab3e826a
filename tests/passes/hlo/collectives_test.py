"""Collectives in every form that a compiler gives them."""

import pytest

from passes.hlo.collectives import SEND_RECV, Collective, Phase, collective_of, safe_collective_of
from passes.hlo.errors import HloError
from passes.hlo.module import HloModule
from passes.hlo.parse import parse
from tests.passes.hlo.fuzz_seeds import GPU, SLICES, TPU
from tests.passes.hlo.texts import in_entry, module_of

ADD = "add\n%x = f32[] parameter(0)\n%y = f32[] parameter(1)\nROOT %s = f32[] add(%x, %y)"
HALVES = ((0, 1, 2, 3), (4, 5, 6, 7))
IOTA = "replica_groups=[2,4]<=[8]"


def found(entry: str, *computations: str) -> dict[str, Collective]:
    module = module_of(entry, ADD, *computations, partitions=8)
    return by_name(module)


def by_name(module: HloModule) -> dict[str, Collective]:
    entry = module.entry_computation
    pairs = ((i.name, collective_of(module, entry, i)) for i in entry.instructions)
    return {name: collective for name, collective in pairs if collective is not None}


@pytest.mark.parametrize(
    ("operation", "kind", "payload"),
    [
        ("f32[10] all-reduce(%p), to_apply=%add", "all-reduce", 40),
        ("f32[40] all-gather(%p), dimensions={0}", "all-gather", 160),  # the gathered result
        ("f32[5] reduce-scatter(%q), to_apply=%add", "reduce-scatter", 80),  # the input
        ("f32[20] all-to-all(%q)", "all-to-all", 80),
        ("f32[20] ragged-all-to-all(%q)", "ragged-all-to-all", 80),
        ("f32[20] collective-broadcast(%q)", "collective-broadcast", 80),
    ],
)
def test_synchronous(operation: str, kind: str, payload: int) -> None:
    entry = "%p = f32[10] parameter(0)\n%q = f32[20] parameter(1)\n"
    assert found(f"{entry}ROOT %r = {operation}, {IOTA}") == {
        "r": Collective(kind, Phase.WHOLE, "r", payload, 1, HALVES, array_bytes=(payload,))
    }


def test_several_arrays_at_once() -> None:
    entry = """
    %p = f32[10] parameter(0)
    %q = bf16[20] parameter(1)
    ROOT %r = (f32[10], bf16[20]) all-reduce(%p, %q), replica_groups={}, to_apply=%add
    """
    everybody = (tuple(range(8)),)
    assert found(entry)["r"] == Collective(
        "all-reduce", Phase.WHOLE, "r", 80, 2, everybody, array_bytes=(40, 40)
    )


def test_permutes_keep_their_pairs() -> None:
    entry = """
    %p = f32[10] parameter(0)
    %s = (f32[10], f32[10]) collective-permute-start(%p), source_target_pairs={{0,1},{1,0}}
    ROOT %d = f32[10] collective-permute-done(%s)
    """
    pairs = ((0, 1), (1, 0))
    assert found(entry) == {
        "s": Collective("collective-permute", Phase.START, "s", 40, 1, pairs, array_bytes=(40,)),
        "d": Collective("collective-permute", Phase.DONE, "s", 0, 0, ()),
    }


@pytest.mark.parametrize(
    ("note", "phase"),
    [("", Phase.START), ('{"is_sync":false}', Phase.START), ('{"is_sync":true}', Phase.WHOLE)],
)
def test_asynchronous_pairs(note: str, phase: Phase) -> None:
    """GPU compilers write pairs, too, that nothing is to run beside."""
    entry = f"""
    %p = f32[10] parameter(0)
    %s = (f32[10], f32[40]) all-gather-start(%p), {IOTA}, dimensions={{0}}, \
backend_config={{"collective_backend_config":{note or "{}"}}}
    %d = f32[40] all-gather-done(%s)
    %t = f32[10] all-reduce-start(%p), {IOTA}, to_apply=%add
    ROOT %e = f32[10] all-reduce-done(%t)
    """
    result = found(entry)
    assert result["s"] == Collective("all-gather", phase, "s", 160, 1, HALVES, array_bytes=(160,))
    assert (result["d"].phase, result["d"].key) == (Phase.DONE, "s")
    assert (result["t"].kind, result["t"].phase, result["t"].payload_bytes) == (
        "all-reduce", Phase.START, 40,
    )  # fmt: skip
    assert (result["e"].kind, result["e"].key) == ("all-reduce", "t")


def test_tpu_fusions() -> None:
    """Start and done share a channel; an all-reduce that is cut is a reduce-scatter."""
    result = by_name(parse(TPU))
    assert set(result) == {"gathering", "gathered", "scattered", "reduced.1"}
    start, done = result["gathering"], result["gathered"]
    assert (start.kind, start.phase, start.payload_bytes) == ("all-gather", Phase.START, 8192)
    assert start.groups == HALVES and start.key == done.key
    assert (done.kind, done.phase) == ("all-gather", Phase.DONE)
    scattered = result["scattered"]
    assert (scattered.kind, scattered.phase) == ("reduce-scatter", Phase.WHOLE)
    assert scattered.payload_bytes == 8 * 512 * 4
    assert scattered.groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert result["reduced.1"].kind == "all-reduce"


def test_a_fusion_that_computes_beside_a_collective_is_computation() -> None:
    entry = "%p = f32[8,8] parameter(0)\nROOT %r = f32[8,8] fusion(%p), kind=kOutput, calls=%inner"
    inner = f"""
    inner
    %p = f32[8,8] parameter(0)
    %g = f32[8,8] all-reduce(%p), {IOTA}, to_apply=%add
    %d = f32[8,8] dot(%p, %p), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
    ROOT %s = f32[8,8] add(%g, %d)
    """
    assert found(entry, inner) == {}
    plain = inner.replace("dot(%p, %p)", "add(%p, %p)")
    assert found(entry, plain)["r"].kind == "all-reduce"
    note = ', backend_config={"continuation_config":{"a":1}}'
    assert found(entry + note, plain) == {}


def test_slices_exchange_by_send_and_recv() -> None:
    result = by_name(parse(SLICES))
    assert set(result) == {"send.1", "sent", "got", "swapped"}
    send = result["send.1"]
    assert (send.kind, send.phase, send.payload_bytes) == ("all-reduce", Phase.START, 4096)
    assert send.between_slices and send.key == result["sent"].key == result["got"].key
    assert result["got"].phase is Phase.DONE
    assert result["swapped"].groups == ((0, 1, 2, 3),)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("ALL_REDUCE", "all-reduce"),
        ("ALL_GATHER", "all-gather"),
        ("REDUCE_SCATTER", "reduce-scatter"),
        ("ALL_TO_ALL", "all-to-all"),
        ("ONE_TO_ONE", "collective-permute"),
        ("SOMETHING_NEW", SEND_RECV),
    ],
)
def test_kinds_of_transfers(written: str, kind: str) -> None:
    assert by_name(parse(SLICES.replace("ALL_REDUCE", written)))["send.1"].kind == kind


def test_sends_that_are_no_collective() -> None:
    text = SLICES.replace(',_xla_megascale_transfer_type="ALL_REDUCE"', "")
    result = by_name(parse(text))
    assert "send.1" not in result


def test_gpu_computations_that_run_asynchronously() -> None:
    result = by_name(parse(GPU))
    scatter = result["scattering"]
    assert (scatter.kind, scatter.phase) == ("reduce-scatter", Phase.START)
    # Half of axis a, in the device order of the mesh's transpose.
    assert scatter.payload_bytes == 64 * 256 * 2 and len(scatter.groups) == 4
    assert (result["scattered"].phase, result["scattered"].key) == (Phase.DONE, "scattering")


def test_groups_that_cannot_be_read() -> None:
    module = module_of("ROOT %r = f32[] all-reduce(), replica_groups=who?", ADD)
    with pytest.raises(HloError, match="'who\\?'"):
        collective_of(*in_entry(module, "r"))
    assert safe_collective_of(*in_entry(module, "r")) == (
        None,
        "replica groups are not understood: 'who?'",
    )


def test_what_is_no_collective() -> None:
    entry = """
    %p = f32[10] parameter(0)
    %c = (f32[10], f32[10], u32[]) copy-start(%p)
    %d = f32[10] copy-done(%c)
    %f = f32[10] fusion(%p), kind=kLoop, calls=%nobody
    %a = f32[10] async-start(%p), calls=%nobody
    ROOT %n = f32[10] negate(%d)
    """
    assert found(entry) == {}
