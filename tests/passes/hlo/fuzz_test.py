"""Damaged HLO gives a result or an `HloError`: no other exception, no hang, no flood of memory.

Each text is made from a seed and its number, so that a failure is repeated by its message alone.
"""

import math
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from passes.hlo.errors import HloError
from passes.hlo.parse import parse
from passes.hlo.schedule import simulate
from passes.hlo.timeline import Timeline
from tests.passes.hlo.fuzz_seeds import SEEDS
from tests.passes.hlo.golden_programs import PROGRAMS
from tests.passes.hlo.mutations import mutate
from tests.passes.hlo.texts import machine_of, ring, switch

MACHINES = (
    machine_of(ring(4, "y"), ring(2, "x")),
    machine_of(switch(2, "dcn"), ring(4, "x")),
    machine_of(switch(8, "nvlink")),
    machine_of(),
)
SMALL_TEXTS = 10_000
BATCHES = 5
LARGE_TEXTS = 40
HANG_S = 120
MOST_BYTES = 4 << 30


class Hang(BaseException):
    """Not an Exception, so that nothing on the way catches it."""


@contextmanager
def watchdog() -> Iterator[None]:
    """Raises `Hang` where one text takes far longer than any should, on however busy a machine.

    By the alarm clock: libtpu, which other tests load into this process, has SIGPROF for itself.
    """

    def bark(signum: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """More memory than a test may take is refused, which ends in a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read(text: str, number: int) -> Timeline | None:
    """What a damaged text gives; None for an `HloError`."""
    try:
        return simulate(parse(text), MACHINES[number % len(MACHINES)])
    except HloError as error:
        assert str(error)
        return None


def check(seed: str, texts: tuple[str, ...], number: int) -> Timeline | None:
    rng = random.Random(f"{seed} {number}")
    text, done = mutate(rng, rng.choice(texts), rng.choice(texts))
    try:
        with watchdog():
            return read(text, number)
    except (Exception, Hang) as error:
        pytest.fail(f"{seed} {number}, damaged by {done}: {error!r}\n{text[:20_000]}")


@pytest.mark.parametrize("text", SEEDS)
@pytest.mark.parametrize("number", range(len(MACHINES)))
def test_seeds_are_sound(text: str, number: int) -> None:
    assert parse(text).unknown == ()
    timeline = read(text, number)
    assert timeline is not None and timeline.step_s > 0
    assert {kind.split()[0] for kind, _ in timeline.unmodelled} <= {"loop"}


@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_small_texts(batch: int) -> None:
    """Most get through, so that the simulator sees them, too."""
    numbers = range(batch, SMALL_TEXTS, BATCHES)
    timelines = [t for number in numbers if (t := check("small", SEEDS, number)) is not None]
    assert len(numbers) / 2 < len(timelines) < len(numbers)
    assert len({t.step_s for t in timelines if math.isfinite(t.step_s)}) > len(timelines) / 20


@pytest.mark.parametrize("index", range(len(PROGRAMS)), ids=lambda index: PROGRAMS[index].name)
def test_damaged_golden_texts(index: int) -> None:
    texts = (PROGRAMS[index].read(),)
    found = [check("golden", texts, number) for number in range(index, LARGE_TEXTS, len(PROGRAMS))]
    assert any(found)


def _nest(instruction: str, depth: int) -> str:
    """Computations that each call the next one twice."""
    return "".join(
        f"%c{n} (p: f32[]) -> f32[] {{\n  %a = f32[] {instruction}%c{n + 1}\n"
        f"  ROOT %b = f32[] {instruction}%c{n + 1}\n}}\n\n"
        for n in range(depth)
    )


HEAD = "HloModule m, is_scheduled=true, num_partitions=8\n\n"
LEAF = "%c22 (p: f32[]) -> f32[] {\n  ROOT %a = f32[] constant(0)\n}\n\n"
HOSTILE = {
    "calls that double": HEAD + _nest("call(), to_apply=", 22) + LEAF
    + "ENTRY %e () -> f32[] {\n  ROOT %a = f32[] call(), to_apply=%c0\n}\n",
    "fusions that double": HEAD + _nest("fusion(), kind=kLoop, calls=", 22) + LEAF
    + "ENTRY %e () -> f32[] {\n  ROOT %a = f32[] fusion(), kind=kLoop, calls=%c0\n}\n",
    "loops of loops": HEAD + _nest('while(), backend_config={"known_trip_count":{"n":'
                                   '"1099511627776"}}, condition=%c22, body=', 22)
    + LEAF + "ENTRY %e () -> f32[] {\n  ROOT %a = f32[] while(), condition=%c22, body=%c0\n}\n",
    "itself": HEAD + "ENTRY %e () -> f32[] {\n  %a = (f32[]) tuple(%a, %a)\n"
    "  %b = f32[] get-tuple-element(%a), index=0\n  ROOT %c = f32[] call(%c), to_apply=%e\n}\n",
    "tuples that double": HEAD + "ENTRY %e () -> f32[] {\n  %t0 = f32[2] negate(%p)\n"
    + "".join(f"  %t{n + 1} = (f32[2], f32[2]) tuple(%t{n}, %t{n})\n" for n in range(60)) + "}\n",
    "shapes in shapes": HEAD + "ENTRY %e () -> f32[] {\n  %a = " + "(" * 100_000 + "f32[]"
    + ")" * 100_000 + " negate()\n  ROOT %b = f32[] constant(0)\n}\n",
    "blanks": HEAD + "ENTRY %e (" + " " * 1_000_000 + "x\n",
    "brackets": HEAD + "ENTRY %e () -> f32[] {\n  ROOT %b = f32[] negate(" + "(" * 300_000
    + ")" * 300_000 + ")\n}\n",
    "digits": HEAD + "ENTRY %e () -> f32[] {\n  %p = f32[" + "1" * 1_000_000
    + "] parameter(0)\n  ROOT %b = f32[2] negate(" + "%" * 1_000_000 + ")\n}\n",
    "devices": HEAD.replace("=8", "=999999999") + "ENTRY %e () -> f32[] {\n"
    "  ROOT %a = f32[] all-reduce(), replica_groups={}\n}\n",
    "frames": HEAD + "StackFrames\n" + "".join(
        f"{n} {{file_location_id=1 parent_frame_id={n}}}\n" for n in range(2, 5000)
    ) + "\nENTRY %e () -> f32[] {\n  ROOT %a = f32[] constant(0)\n}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_texts_made_to_hang(name: str) -> None:
    with watchdog():
        for number in range(len(MACHINES)):
            read(HOSTILE[name], number)
