"""Data: reproducible, resumable at any batch, and never seen in training if held out."""

import json
import pathlib
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import data, text
from experiments.data import BatchStream, TextWindows
from experiments.synthetic import PatternSource
from experiments.text import DataError


def tokens(batch_size: int, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {"tokens": jax.ShapeDtypeStruct((batch_size, seq_len), jnp.int32)}


def windows(num: int, seq_len: int = 4) -> TextWindows:
    content = np.arange(num * seq_len, dtype=np.uint32).astype(np.uint8)
    return TextWindows(content, np.arange(num) * seq_len, seq_len)


def write_files(root: pathlib.Path, num: int, size: int) -> list[bytes]:
    contents = [bytes([i]) * size for i in range(1, num + 1)]
    for i, content in enumerate(contents):
        (root / f"{i}.txt").write_bytes(content)
    return contents


@settings(max_examples=25, deadline=None)
@given(
    num=st.integers(300, 500),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    stop=st.integers(0, 150),
)
def test_a_stream_is_resumable_at_any_batch(num, batch_size, seed, stop):
    source = windows(num)
    whole = BatchStream(source, batch_size, seed)
    for _ in range(stop):
        next(whole)
    state = json.loads(json.dumps(whole.get_state()))
    rest = [next(whole)["tokens"] for _ in range(3)]
    resumed = BatchStream(source, batch_size, seed)
    resumed.set_state(state)
    for want in rest:
        np.testing.assert_array_equal(next(resumed)["tokens"], want)


def test_every_example_once_an_epoch_in_an_order_of_its_own():
    num = 256
    stream = BatchStream(TextWindows(np.arange(256, dtype=np.uint8), np.arange(num), 1), 16, seed=1)
    epochs = [
        np.concatenate([next(stream)["tokens"][:, 0] for _ in range(num // 16)]) for _ in range(2)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], np.arange(num))


def test_bad_streams_are_refused():
    with pytest.raises(DataError, match=r"--seed=-1 is outside 0\.\.4294967295"):
        BatchStream(windows(8), 2, seed=-1)
    with pytest.raises(DataError, match="no example"):
        BatchStream(windows(0), 2, seed=0)


def test_default_text_is_the_standard_library():
    dataset = data.for_model(tokens(4, 64), eval_batches=3)
    batch = next(BatchStream(dataset.train, dataset.batch_size, seed=0))
    assert batch["tokens"].shape == (4, 64) and batch["tokens"].dtype == np.int32
    assert batch["tokens"].min() >= 0 and batch["tokens"].max() < 256
    assert len(dataset.train) > 1000
    held = list(dataset.heldout_batches())
    assert [b["tokens"].shape for b in held] == [(4, 64)] * 3
    for first, second in zip(held, dataset.heldout_batches(), strict=True):
        np.testing.assert_array_equal(first["tokens"], second["tokens"])
    assert dataset.tokens_per_batch == 256 and dataset.is_bytes
    assert dataset.fingerprint == data.for_model(tokens(8, 64)).fingerprint


def test_standard_library_is_split_by_file():

    root = pathlib.Path(sysconfig.get_path("stdlib"))
    names = text.stdlib_files(root)
    assert not [n for n in names if "site-packages" in n or n.startswith(("test/", "idlelib/"))]
    held = text.heldout_files(names, [1] * len(names), 1)
    assert 0.02 < len(held) / len(names) < 0.08
    loaded = text.load_text("", 128)
    assert len(loaded.train) + len(loaded.heldout) > 5_000_000
    first = (root / min(held)).read_bytes()
    assert first in loaded.heldout.tobytes() and first not in loaded.train.tobytes()
    assert not loaded.notes


@settings(max_examples=50, deadline=None)
@given(names=st.lists(st.text("abc/.", min_size=1), min_size=2, max_size=60, unique=True))
def test_which_files_are_held_out_depends_on_names_alone(names):
    chosen = text.heldout_files(names, [10] * len(names), 10)
    assert 0 < len(chosen) < len(names)
    backwards = text.heldout_files(names[::-1], [10] * len(names), 10)
    assert chosen == backwards


def test_user_files_are_split_by_file(tmp_path):
    contents = write_files(tmp_path, 6, size=100)
    loaded = text.load_text(str(tmp_path / "*.txt"), 32)
    for content in contents:
        assert (content in loaded.train.tobytes()) != (content in loaded.heldout.tobytes())
    assert "6 files" in loaded.description


def test_a_large_heldout_share_is_noted(tmp_path):
    write_files(tmp_path, 2, size=100)
    assert "50% of the text is held out" in text.load_text(str(tmp_path / "*.txt"), 8).notes[0]


def test_one_file_is_split_by_position_and_says_so(tmp_path):
    (tmp_path / "book.txt").write_bytes(bytes(range(200)) * 10)
    loaded = text.load_text(str(tmp_path / "book.txt"), 32)
    assert (len(loaded.train), len(loaded.heldout)) == (1900, 100)
    assert "one file" in loaded.notes[0] and "last 100 bytes" in loaded.notes[0]


def test_tiny_files_are_split_by_position(tmp_path):
    write_files(tmp_path, 3, size=30)
    loaded = text.load_text(str(tmp_path / "*.txt"), 45)
    assert min(len(loaded.train), len(loaded.heldout)) >= 45
    assert "too small" in loaded.notes[0]


def test_bad_text_is_explained(tmp_path):
    with pytest.raises(DataError, match=r"matches no file.*Quote the pattern"):
        text.load_text(str(tmp_path / "*.txt"), 8)
    write_files(tmp_path, 2, size=10)
    with pytest.raises(DataError, match=r"20 bytes in 2 files.*at most --seq_len=10"):
        text.load_text(str(tmp_path / "*.txt"), 128)
    with pytest.raises(DataError, match="at least 2 tokens"):
        data.for_model(tokens(4, 1))
    with pytest.raises(DataError, match=r"vocabulary has 64 tokens.*vocab_size=256"):
        data.for_model(tokens(4, 8), vocab_size=64)


def test_short_heldout_text_still_fills_its_batches(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(100)))
    dataset = data.for_model(tokens(4, 16), pattern=str(tmp_path / "a.txt"), eval_batches=2)
    assert [b["tokens"].shape for b in dataset.heldout_batches()] == [(4, 16)] * 2


def image_specs() -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "image": jax.ShapeDtypeStruct((8, 12, 12, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((8,), jnp.int32),
    }


def test_patterns_fit_the_model_and_repeat_from_the_seed():
    first, second = (data.for_model(image_specs(), num_classes=5, seed=3) for _ in range(2))
    batch = next(BatchStream(first.train, 8, seed=3))
    again = next(BatchStream(second.train, 8, seed=3))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in image_specs().items()
    }
    for key, value in batch.items():
        np.testing.assert_array_equal(value, again[key])
    assert (first.unit, first.is_bytes, first.tokens_per_batch) == ("examples", False, 8)
    assert not np.array_equal(first.train[0]["image"], first.heldout[0]["image"])


@pytest.mark.parametrize("shape", [(16,), (8, 8, 3)])
def test_patterns_are_learnable(shape):
    source = PatternSource("x", shape, num_classes=4, num_examples=200, seed=0)
    patterns = np.stack([source.pattern(c).ravel() for c in range(4)])
    examples = [source[i] for i in range(200)]
    guesses = np.argmax(np.stack([e["x"].ravel() for e in examples]) @ patterns.T, axis=-1)
    labels = np.array([e["label"] for e in examples])
    assert np.mean(guesses == labels) > 0.7
    assert set(labels) == set(range(4))
    with pytest.raises(IndexError):
        source[200]


def test_batches_without_data_are_refused():
    image = image_specs()["image"]
    with pytest.raises(DataError, match=r"no data for a batch of \{image: float32\[8, 12, 12, 3\]"):
        data.for_model({"image": image})
    with pytest.raises(DataError, match="the model takes 'image'"):
        data.for_model(image_specs(), pattern="*.txt")
