"""Checkpoints come back on any mesh, and no bad input loses one."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from autoshard import checkpoint
from autoshard.checkpoint import Checkpointer
from autoshard.checkpoint_directory import MARKER, SET_ASIDE
from autoshard.errors import CheckpointError
from autoshard.state import TrainState


def make_mesh(*sizes: int) -> Mesh:
    names = ("data", "model", "extra")[: len(sizes)]
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(sizes))


def make_state(mesh: Mesh, spec: P, seed: int = 0) -> TrainState:
    """A state with what is awkward: integer keys, NamedTuples, keys, bfloat16, empty arrays."""
    normal = np.random.default_rng(seed).normal
    matrix = NamedSharding(mesh, spec)
    whole = NamedSharding(mesh, P())

    def put(value, sharding):
        return jax.device_put(value, sharding)

    params = {
        "layers": {
            i: {"kernel": put(normal(size=(16, 8)).astype(np.float32), matrix)} for i in range(2)
        },
        "a/b": put(jnp.asarray(normal(size=(8,)), jnp.bfloat16), whole),
        "empty": put(np.zeros((0, 3), np.float32), whole),
    }
    opt_state = optax.adam(1e-3).init(params)
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), 8)
    return TrainState(
        step=put(jnp.int32(seed), whole),
        params=params,
        opt_state=opt_state,
        model_state={"dropout": put(keys, NamedSharding(mesh, P(mesh.axis_names[0])))},
        rng=put(jax.random.key(seed), whole),
    )


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(got, want) -> None:
    assert str(jax.tree.structure(got)) == str(jax.tree.structure(want))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def tiny(value: float = 1.0) -> dict:
    return {"w": jnp.full((4, 4), value, jnp.float32)}


def tree_of(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_restores_on_another_mesh_and_spec(tmp_path, asynchronous):
    saved = make_state(make_mesh(2, 4), P("data", "model"), seed=3)
    with Checkpointer(tmp_path / "run", asynchronous=asynchronous) as checkpoints:
        assert checkpoints.save(
            3, saved, data_state={"next_index": 7}, plan={"mesh": "2x4"}, metrics={"loss": 1.5}
        )
    for mesh, spec in [(make_mesh(8), P("data")), (make_mesh(2, 2, 2), P(("model", "extra")))]:
        target = abstract(make_state(mesh, spec))
        with Checkpointer(tmp_path / "run") as checkpoints:
            restored = checkpoints.restore(target)
        assert_same(restored.state, saved)
        assert jax.tree.map(lambda x: x.sharding, restored.state) == jax.tree.map(
            lambda x: x.sharding, target
        )
        assert (restored.step, restored.data_state) == (3, {"next_index": 7})
        assert (restored.plan, restored.metrics) == ({"mesh": "2x4"}, {"loss": 1.5})
        # The keys still draw what they would have drawn.
        assert jax.random.key_impl(restored.state.model_state["dropout"]) == "rbg"
        assert jax.random.bits(restored.state.rng) == jax.random.bits(saved.rng)


def test_data_state_may_be_bytes_and_leaves_without_a_sharding_go_to_one_device(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": np.ones((2, 2), np.float32), "n": 3}, data_state=b"\x00\xff")
        restored = checkpoints.restore({"w": jax.ShapeDtypeStruct((2, 2), jnp.float32), "n": 0})
    assert restored.data_state == b"\x00\xff"
    assert int(restored.state["n"]) == 3
    assert restored.state["w"].sharding.device_set == {jax.devices()[0]}


def test_buffers_may_be_donated_right_after_an_asynchronous_save(tmp_path):
    sharding = NamedSharding(make_mesh(8), P("data"))
    value = jax.device_put(np.arange(1 << 18, dtype=np.float32), sharding)
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": value})
        overwrite(value).block_until_ready()
        restored = checkpoints.restore({"x": jax.ShapeDtypeStruct((1 << 18,), jnp.float32)})
    np.testing.assert_array_equal(restored.state["x"], np.arange(1 << 18, dtype=np.float32))


def test_saves_every_few_steps_and_keeps_the_newest(tmp_path):
    with Checkpointer(tmp_path, keep=2, save_every=10) as checkpoints:
        assert checkpoints.latest_step() is None
        started = [s for s in range(1, 36) if checkpoints.save(s, tiny(s))]
        assert started == [10, 20, 30]
        assert checkpoints.save(35, tiny(35), force=True)
        assert not checkpoints.save(35, tiny(0), force=True), "a complete step is never rewritten"
        assert checkpoints.latest_step() == 35
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.steps() == (30, 35)
        np.testing.assert_array_equal(checkpoints.restore(tiny()).state["w"], tiny(35)["w"])


def test_a_new_run_does_not_push_out_an_earlier_one(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(5, tiny())
    with Checkpointer(tmp_path, keep=1) as checkpoints:
        with pytest.raises(CheckpointError, match=r"earlier run \(step 5\).*--resume"):
            checkpoints.save(6, tiny())
        assert checkpoints.steps() == (5,)


def test_going_on_from_an_older_step_moves_newer_ones_aside(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, tiny(step))
    for attempt in ("first", "second"):
        with Checkpointer(tmp_path) as checkpoints:
            checkpoints.restore(tiny(), step=1)
            assert not checkpoints.save(1, tiny(-1), force=True)
            assert checkpoints.steps()[0] == 1
            checkpoints.save(2, tiny(20))
            assert checkpoints.latest_step() == 2, attempt
    with Checkpointer(tmp_path) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore(tiny()).state["w"], tiny(20)["w"])
    assert sorted(p.name for p in (tmp_path / SET_ASIDE).iterdir()) == ["2", "2.1", "3"]


def test_foreign_directory_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("five years of work")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "data").write_text("not ours, though it looks like a step")
    before = tree_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"thesis\.tex.*Nothing was changed.*new directory"):
        Checkpointer(tmp_path)
    assert tree_of(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["7", "thesis.tex"]


def test_a_claim_cut_short_is_finished(tmp_path):
    (tmp_path / (MARKER + ".tmp")).write_text("")
    with Checkpointer(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [MARKER]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "cannot be read as autoshard's marker"), ("[]", "cannot be read"), ("{}", "cannot be")],
)
def test_damaged_marker(tmp_path, text, message):
    (tmp_path / MARKER).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Checkpointer(tmp_path)


def test_newer_format_is_refused(tmp_path):
    (tmp_path / MARKER).write_text(json.dumps({"autoshard_checkpoint_format": 99}))
    with pytest.raises(CheckpointError, match=r"newer autoshard \(format 99"):
        Checkpointer(tmp_path)


def test_unwritable_directory_is_refused_early(tmp_path):
    # A path below a regular file: no user may create it, root neither.
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file.*cannot be written to.*Choose another"):
        Checkpointer(tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match="at least 1"):
        Checkpointer(tmp_path / "run", keep=0)


def test_nothing_to_restore(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
            checkpoints.restore(tiny())
        checkpoints.save(4, tiny())
        with pytest.raises(CheckpointError, match="no checkpoint of step 5; it holds step 4"):
            checkpoints.restore(tiny(), step=5)


def _truncate_data(step: pathlib.Path) -> None:
    for path in (step / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _drop_state(step: pathlib.Path) -> None:
    shutil.rmtree(step / "state")


def _drop_about(step: pathlib.Path) -> None:
    shutil.rmtree(step / "about")


def _empty(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def _garble_about(step: pathlib.Path) -> None:
    (step / "about" / "metadata").write_text('{"format": 1, "lea')


@pytest.mark.parametrize(
    "damage", [_truncate_data, _drop_state, _drop_about, _empty, _garble_about]
)
def test_damaged_newest_step_names_the_older_ones(tmp_path, damage):
    with Checkpointer(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, tiny(step))
    damage(tmp_path / "3")
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match=r"step 3 .* damaged.*steps 1, 2 .*_step=2"):
            checkpoints.restore(tiny())
        assert checkpoints.restore(tiny(), step=2).step == 2
        checkpoints.save(3, tiny(30))
        assert checkpoints.latest_step() == 3
        np.testing.assert_array_equal(checkpoints.restore(tiny()).state["w"], tiny(30)["w"])
    assert (tmp_path / SET_ASIDE / "3").exists()


def test_mismatches_are_named(tmp_path):
    saved = {"layers": {0: jnp.zeros((2, 3)), 1: jnp.zeros((2,))}, "old": jnp.zeros(())}
    wanted = {
        "layers": {0: jnp.zeros((2, 4)), 1: jnp.zeros((2,), jnp.bfloat16)},
        "new": jnp.zeros((5,)),
    }
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, saved)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(wanted)
    message = str(caught.value)
    assert "`layers/0` is float32[2, 3] in the checkpoint but float32[2, 4] in the model" in message
    assert "`layers/1` is float32[2] in the checkpoint but bfloat16[2] in the model" in message
    assert "`new` (float32[5]) is missing" in message
    assert "`old` (float32[]) is in the checkpoint only" in message


def test_a_key_of_another_implementation_is_a_mismatch(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"rng": jax.random.key(0, impl="rbg")})
        with pytest.raises(CheckpointError, match=r"`rng` is key<rbg>\[\].*key<fry>\[\]"):
            checkpoints.restore({"rng": jax.random.key(0)})


def test_unserialisable_data_state_fails_in_the_caller(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(1, tiny(), data_state={"x": object()})
        assert checkpoints.latest_step() is None


def test_leftovers_of_a_killed_save_are_cleaned_on_opening(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, tiny())
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.steps() == (1,)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", MARKER]


KILLED_IN_A_SAVE = """
import os, signal, sys
import jax.numpy as jnp
from autoshard.checkpoint import Checkpointer
checkpoints = Checkpointer(sys.argv[1])
checkpoints.save(1, {"w": jnp.full((1 << 24,), 1.0)})
checkpoints.wait()
checkpoints.save(2, {"w": jnp.full((1 << 24,), 2.0)})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_in_an_asynchronous_save_leaves_the_last_complete_step(tmp_path):
    root = pathlib.Path(checkpoint.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_SAVE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with Checkpointer(tmp_path) as checkpoints:
        restored = checkpoints.restore({"w": jax.ShapeDtypeStruct((1 << 24,), jnp.float32)})
    # The second save may have won the race; whatever is restored must be whole.
    assert restored.step in (1, 2)
    np.testing.assert_array_equal(restored.state["w"], np.full((1 << 24,), restored.step))
    assert not list(tmp_path.glob("*.orbax-checkpoint-tmp*"))
