"""What a run reads: batches in a reproducible order that can be left and taken up again.

    source (random access) -> shuffle, anew each epoch -> repeat -> batch -> iterator

is Grain's; this file says which source a model needs and keeps training and held-out data apart.
The order follows from the seed alone, so the iterator's whole state is a position.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import grain
import jax
import numpy as np

from experiments.synthetic import PatternSource
from experiments.text import DataError, load_text

Batch = dict[str, np.ndarray]

_NUM_SYNTHETIC = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class TextWindows:
    """A random-access source of `{"tokens": int32[seq_len]}`: window i starts at `starts[i]`.

    Attributes:
      text: uint8[N].
      starts: int64[number of windows].
      seq_len: tokens, that is bytes, in a window.
    """

    text: np.ndarray
    starts: np.ndarray
    seq_len: int

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: SupportsIndex) -> Batch:
        start = int(self.starts[index])
        return {"tokens": self.text[start : start + self.seq_len].astype(np.int32)}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """What a run trains on and is scored on.

    Attributes:
      train: examples by number, `{"tokens": int32[S]}` or `{input_key: float32[...], "label"}`.
      heldout: a fixed list of held-out examples, a multiple of the batch size long.
      batch_size: examples a batch.
      tokens_per_batch: what throughput counts: tokens of text, or examples.
      unit: "tokens" or "examples".
      is_bytes: whether a token is a byte of text, so that nats convert to bits per byte.
      description: for people.
      notes: what the user should know.
      fingerprint: identifies the data, the order aside.
    """

    train: Any
    heldout: Any
    batch_size: int
    tokens_per_batch: int
    unit: str
    is_bytes: bool
    description: str
    notes: tuple[str, ...]
    fingerprint: str

    def heldout_batches(self) -> Iterator[Batch]:
        """Yields the same held-out batches in the same order each time."""
        for first in range(0, len(self.heldout), self.batch_size):
            yield _stack([self.heldout[i] for i in range(first, first + self.batch_size)])


class BatchStream:
    """An endless iterator of training batches, whose position can be saved and set.

    Args:
      source: anything with `__len__` and `__getitem__`.
      batch_size: examples a batch; a batch may straddle two epochs.
      seed: 0 .. 2**32 - 1, of the order of each epoch.
    """

    def __init__(self, source: Any, batch_size: int, seed: int):
        if not 0 <= seed < 2**32:
            raise DataError(f"--seed={seed} is outside 0..{2**32 - 1}; choose one within.")
        if len(source) < 1:
            raise DataError("The data holds no example to train on.")
        dataset = (
            grain.MapDataset.source(source)
            .shuffle(seed=seed)
            .repeat()
            .batch(batch_size, drop_remainder=True)
        )
        # Examples are slices of memory: threads that read ahead would cost more than they hide.
        self._iterator = iter(
            dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        )

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Batch:
        return dict(next(self._iterator))

    def get_state(self) -> dict[str, Any]:
        """The position, JSON-able: `set_state` on an equal stream goes on with the next batch."""
        return dict(self._iterator.get_state())

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `get_state` of an equal stream returned."""
        self._iterator.set_state(dict(state))


def for_model(
    specs: Mapping[str, jax.ShapeDtypeStruct],
    *,
    pattern: str = "",
    eval_batches: int = 8,
    num_classes: int = 10,
    vocab_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Chooses and prepares the data that fits a model.

    Args:
      specs: one batch's arrays: `{"tokens": int32[B, S]}`, or one float input of any shape
        [B, ...] and `{"label": int32[B]}`.
      pattern: glob of the user's text files; empty for the standard library's sources.
      eval_batches: held-out batches.
      num_classes: of the labels.
      vocab_size: of a text model, where known: bytes need 256.
      seed: of synthetic examples; text does not depend on it.

    Raises:
      DataError: the batch is neither of the two kinds, or the text does not do.
    """
    if set(specs) == {"tokens"}:
        batch_size, seq_len = specs["tokens"].shape
        if vocab_size is not None and vocab_size < 256:
            raise DataError(
                f"The model's vocabulary has {vocab_size} tokens, but text is read as bytes, which "
                f"are 256: set --model_overrides=vocab_size=256."
            )
        return _text_dataset(pattern, batch_size, seq_len, eval_batches)
    inputs = [key for key in specs if key != "label"]
    if len(inputs) != 1 or "label" not in specs:
        shown = ", ".join(f"{k}: {v.dtype}{list(v.shape)}" for k, v in specs.items())
        raise DataError(
            f"There is no data for a batch of {{{shown}}}: this runner has text for `tokens` "
            f"[B, S], and labelled patterns for one float input beside `label` [B]."
        )
    if pattern:
        raise DataError(
            f"--data={pattern!r} names text, but the model takes {inputs[0]!r}: leave --data out "
            f"to train it on synthetic patterns, or choose a text model."
        )
    return _pattern_dataset(inputs[0], specs[inputs[0]].shape, eval_batches, num_classes, seed)


def _text_dataset(pattern: str, batch_size: int, seq_len: int, eval_batches: int) -> Dataset:
    if seq_len < 2:
        raise DataError(f"--seq_len={seq_len}: predicting the next token takes at least 2 tokens.")
    text = load_text(pattern, seq_len)
    train_starts = np.arange(0, len(text.train) - seq_len + 1, seq_len)
    # Evenly spread, so that a few batches already see all held-out files. They overlap where the
    # text is short, rather than leave a batch of another size, which would be compiled again.
    held_starts = np.linspace(0, len(text.heldout) - seq_len, eval_batches * batch_size)
    return Dataset(
        train=TextWindows(text.train, train_starts, seq_len),
        heldout=TextWindows(text.heldout, held_starts.astype(np.int64), seq_len),
        batch_size=batch_size,
        tokens_per_batch=batch_size * seq_len,
        unit="tokens",
        is_bytes=True,
        description=text.description,
        notes=text.notes,
        fingerprint=f"text:{text.fingerprint}:seq_len={seq_len}",
    )


def _pattern_dataset(
    input_key: str, shape: tuple[int, ...], eval_batches: int, num_classes: int, seed: int
) -> Dataset:
    batch_size, *example = shape
    train = PatternSource(input_key, tuple(example), num_classes, _NUM_SYNTHETIC, seed)
    heldout = dataclasses.replace(
        train, num_examples=eval_batches * batch_size, first=_NUM_SYNTHETIC
    )
    return Dataset(
        train=train,
        heldout=heldout,
        batch_size=batch_size,
        tokens_per_batch=batch_size,
        unit="examples",
        is_bytes=False,
        description=f"synthetic: {num_classes} patterns of shape {tuple(example)} under noise",
        notes=(),
        fingerprint=f"patterns:{input_key}:{tuple(example)}:{num_classes}:{seed}",
    )


def _stack(examples: Sequence[Batch]) -> Batch:
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}
