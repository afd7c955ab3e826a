"""Labelled examples from a seed: for models of images and vectors, where text will not do.

Each class has a fixed smooth pattern; an example is its class's pattern under noise. A model that
learns anything gets far below the loss of guessing, and one that memorises does not, since no two
examples share their noise. Example i is made from the seed and i alone: nothing is stored, and any
worker makes the same one.
"""

import dataclasses
import math

import numpy as np

NOISE_STD = 1.0


@dataclasses.dataclass(frozen=True)
class PatternSource:
    """A random-access source of `{input_key: float32[shape], "label": int32[]}`.

    Attributes:
      input_key: the name of the input.
      shape: of one example; the last dimension of an image is its channels.
      num_classes: labels are 0 .. num_classes - 1.
      num_examples: the length of the source.
      seed: of the patterns and the noise.
      first: number of the first example; disjoint ranges make disjoint sources.
    """

    input_key: str
    shape: tuple[int, ...]
    num_classes: int
    num_examples: int
    seed: int
    first: int = 0

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples}")
        rng = np.random.default_rng((self.seed, 1, self.first + int(index)))
        label = int(rng.integers(self.num_classes))
        noise = rng.standard_normal(self.shape, np.float32) * np.float32(NOISE_STD)
        return {self.input_key: self.pattern(label) + noise, "label": np.int32(label)}

    def pattern(self, label: int) -> np.ndarray:
        """The class's pattern, float32[shape]: a wave over every axis, of root mean square 1."""
        rng = np.random.default_rng((self.seed, 0, label))
        wave = np.zeros(self.shape, np.float32)
        for axis, size in enumerate(self.shape):
            # Low frequencies, which a convolution's or a patch's local view can tell apart.
            frequency = rng.uniform(0.5, 3.0)
            phase = rng.uniform(0, 2 * math.pi)
            line = np.cos(2 * math.pi * frequency * np.arange(size) / size + phase)
            wave += line.astype(np.float32).reshape(
                [size if a == axis else 1 for a in range(len(self.shape))]
            )
        return wave / np.float32(np.sqrt(np.mean(wave**2)) + 1e-6)
