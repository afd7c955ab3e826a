from memory_planner.offsets import Buffer, OffsetProblem, Section, lower_bound_bytes
from memory_planner.offsets.sections import (
    Clique,
    cliques,
    describe,
    granularity_bytes,
    partitions,
)
from tests.memory_planner.offsets.instances import EXAMPLE, problem


def test_sections_are_the_largest_sets_of_live_buffers() -> None:
    assert cliques(EXAMPLE) == (
        Clique(0, 3, (0, 2, 4)),
        Clique(3, 9, (1, 2, 4)),
        Clique(9, 21, (3, 4)),
    )


def test_a_set_within_its_neighbour_is_no_section() -> None:
    assert cliques(problem((0, 9, 1), (2, 4, 1), (3, 4, 1))) == (Clique(3, 4, (0, 1, 2)),)


def test_a_gap_ends_a_section() -> None:
    gapped = OffsetProblem((Buffer("a", 0, 9, 1, gaps=((3, 6),)), Buffer("b", 3, 6, 1)))
    assert cliques(gapped) == (Clique(0, 3, (0,)), Clique(3, 6, (1,)), Clique(6, 9, (0,)))


def test_partitions_share_no_buffer() -> None:
    found = cliques(problem((0, 3, 1), (2, 5, 1), (5, 9, 1), (9, 11, 1), (9, 10, 1)))
    assert [part.buffers for part in partitions(found)] == [(0, 1), (2,), (3, 4)]


def test_a_life_with_a_gap_keeps_its_time_together() -> None:
    gapped = OffsetProblem((Buffer("a", 0, 9, 1, gaps=((3, 6),)), Buffer("b", 3, 6, 1)))
    assert [part.buffers for part in partitions(cliques(gapped))] == [(0, 1)]


def test_section_is_described_by_names() -> None:
    assert describe(EXAMPLE, cliques(EXAMPLE)[1]) == Section(3, 9, 12, ("b1", "b2", "b4"))


def test_lower_bound_is_load_or_top_of_a_fixed_buffer() -> None:
    assert lower_bound_bytes(OffsetProblem(())) == 0
    assert lower_bound_bytes(EXAMPLE) == 12
    fixed = Buffer("f", 0, 1, 8, offset=16)
    assert lower_bound_bytes(OffsetProblem((*EXAMPLE.buffers, fixed))) == 24


def test_granularity_divides_sizes_alignments_and_fixed_offsets() -> None:
    a, b = Buffer("a", 0, 1, 12), Buffer("b", 0, 1, 24, alignment=6)
    assert granularity_bytes(OffsetProblem((a,))) == 12
    assert granularity_bytes(OffsetProblem((a, b))) == 6
    assert granularity_bytes(OffsetProblem((a, b, Buffer("c", 0, 1, 12, offset=4)))) == 2
    assert granularity_bytes(OffsetProblem(())) == 1
