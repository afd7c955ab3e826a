"""Cuts: of layers and of anything else, and in the order in which a TPU lays arrays out."""

import pytest

from passes.host_cuts import Cut, cut_of, tpu_order

# Shapes, and how the TPU compiler lays out a program's arguments of them; those of
# tests/aot/offload_test.py.
LAYOUTS = [
    ((), ()),
    ((300,), (0,)),
    ((32, 2048), (0, 1)),
    ((2048, 32), (1, 0)),
    ((4096, 2004), (1, 0)),
    ((2004, 4096), (0, 1)),
    ((16, 64, 448), (0, 1, 2)),
    ((16, 1024, 448), (0, 2, 1)),
    ((16, 4, 1024), (0, 1, 2)),
    ((16, 1024, 4), (0, 2, 1)),
    ((16, 128, 130), (2, 0, 1)),
    ((16, 130, 128), (1, 0, 2)),
    ((7, 1024, 1000), (0, 2, 1)),
    ((3, 16, 1024, 448), (0, 1, 3, 2)),
    ((16, 1024, 8, 56), (0, 2, 3, 1)),
    ((16, 56, 8, 1024), (0, 1, 2, 3)),
]


@pytest.mark.parametrize(
    ("shape", "local", "piece_bytes", "expected"),
    [
        ((1024, 4096), (1024, 512), 1 << 20, Cut(0, 2)),  # whole in its first dimension
        ((8192, 4096), (1024, 4096), 1 << 20, Cut(0, 16, 8)),  # each device cuts its rows
        ((8192, 4096), (8192, 4096), 1 << 20, Cut(0, 128)),
        ((96, 4096), (96, 4096), 1 << 10, Cut(0, 3)),  # no smaller than 32 rows
        ((5, 64, 64), (5, 64, 64), 1 << 30, Cut(1, 2)),
        ((4096,), (4096,), 1 << 10, Cut(0, 1)),
        ((7, 4096), (7, 4096), 1 << 10, Cut(0, 1)),
        # Laid out the other way round.
        ((4096, 96), (4096, 96), 1 << 10, Cut(1, 3, 1, (1, 0))),
        ((4096, 768), (4096, 96), 1 << 10, Cut(1, 3, 8, (1, 0))),
        ((6, 130, 128), (6, 130, 128), 1 << 20, Cut(0, 2)),
    ],
)
def test_cuts_for_a_device_that_tiles(
    shape: tuple[int, ...], local: tuple[int, ...], piece_bytes: int, expected: Cut
) -> None:
    assert cut_of(shape, local, 4, piece_bytes, tiled=True) == expected


@pytest.mark.parametrize(
    ("shape", "local", "tiled", "expected"),
    [
        ((6, 64, 128), (6, 64, 128), True, Cut(0, 6)),
        ((6, 1024, 448), (6, 1024, 448), True, Cut(0, 6, 1, (0, 2, 1))),
        ((16, 130, 128), (16, 130, 128), False, Cut(0, 16)),
        ((16, 130, 128), (16, 130, 128), True, Cut(1, 2, 1, (1, 0, 2))),  # a layer is no tile
        ((6, 64, 128), (3, 64, 128), True, Cut(1, 2)),  # layers are sharded
        ((6, 64), (6, 64), False, Cut(0, 6)),
        ((6, 64), (6, 64), True, Cut(0, 1)),
    ],
)
def test_cuts_of_layers(
    shape: tuple[int, ...], local: tuple[int, ...], tiled: bool, expected: Cut
) -> None:
    assert cut_of(shape, local, 4, 1 << 30, layers=True, tiled=tiled) == expected


@pytest.mark.parametrize(("local", "order"), LAYOUTS)
def test_layouts_are_those_of_the_tpu_compiler(
    local: tuple[int, ...], order: tuple[int, ...]
) -> None:
    assert tpu_order(local) == order
