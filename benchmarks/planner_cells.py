"""The workloads and machines of `benchmarks.planner`, and its columns."""

import dataclasses
from typing import Any

from autoshard.topology import Topology


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model on a machine, in bfloat16 with float32 parameters and AdamW.

    Attributes:
      model: name in the registry.
      topology: the machine; the mesh is a column's own.
      batch_size: examples, over all devices.
      seq_len: tokens an example; None for models without.
      overrides: fields of the model's configuration.
    """

    model: str
    topology: str
    batch_size: int
    seq_len: int | None = None
    overrides: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        seq = f"x{self.seq_len}" if self.seq_len else ""
        return f"{self.model} {self.batch_size}{seq} on {self.topology}"

    @property
    def devices(self) -> int:
        """Devices of the machine."""
        return Topology.parse(self.topology).device_count


_SCANNED = (("scan_layers", True), ("remat", "full"))
# Dropout is off: the compiler takes minutes over its random numbers.
_GPT2 = (*_SCANNED, ("dropout_rate", 0.0))

CELLS = (
    Cell("gpt2_xl", "v5e:16x16", 512, 1024, _GPT2),
    Cell("gpt2_xl", "h100:8x4", 256, 1024, _GPT2),
    Cell("llama3_8b", "v5p:4x4x4", 64, 4096),
    Cell("llama3_8b", "v6e:16x16", 256, 4096),
    Cell("llama3_70b", "v5p:4x4x4", 64, 4096),
    Cell("llama3_70b", "v6e:16x16", 256, 4096),
    Cell("maxtext_32b", "v5e:16x16", 512, 2048),
    Cell("maxtext_32b", "v5p:4x4x4", 384, 2048),
    Cell("mixtral_8x7b", "v5p:4x4x4", 64, 4096),
    Cell("mixtral_8x7b", "v6e:16x16", 256, 4096),
    Cell("t5_v1_1_large", "v5e:4x4", 64, 512),
    Cell("t5_v1_1_large", "h100:8x4", 512, 512),
    Cell("vit_l16", "v5e:4x4", 512, None, _SCANNED),
    Cell("vit_l16", "v5e:16x16", 4096, None, _SCANNED),
    Cell("resnet50", "v5e:4x4", 2048),
    Cell("resnet50", "h100:8x4", 8192),
    Cell("mixer_l16", "v5e:4x4", 512),
    Cell("mixer_l16", "v6e:16x16", 8192),
)


@dataclasses.dataclass(frozen=True)
class Column:
    """A way to lay a model out.

    Attributes:
      name: of the column.
      rules: rule sets.
      tensor: devices of the tensor axis; 0: the planner's own mesh.
    """

    name: str
    rules: str
    tensor: int

    def target(self, cell: Cell) -> str:
        """Topology and mesh."""
        if not self.tensor:
            return cell.topology
        return f"{cell.topology} data={cell.devices // self.tensor},model={self.tensor}"


SINGLE = (
    Column("data", "data", 1),
    Column("zero3", "zero3", 1),
    Column("redco", "redco", 8),
)
# The choice of experts: fully sharded data parallelism times tensor parallelism (MaxText).
# Of a tensor axis of 1 it is the column "zero3".
EXPERT = tuple(Column(f"fsdp x tensor {n}", "zero3+redco", n) for n in (2, 4, 8))
SEARCH = Column("search", "auto", 0)
