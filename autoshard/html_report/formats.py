"""Numbers as people read them."""

import math

from autoshard.explain import format_bytes

_SI = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
NOTHING = "–"


def format_seconds(seconds: float) -> str:
    """`1.52 s`, `45.6 ms`, `7.81 µs`: three significant digits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return "0 s" if seconds == 0 else f"{_three_digits(seconds / 1e-9)} ns"


def format_si(value: float, unit: str) -> str:
    """`459 TFLOP/s`: three significant digits and a decimal prefix."""
    for scale, prefix in _SI:
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}"


def format_count(value: float) -> str:
    """`12,345`; whole numbers in full, others to three significant digits."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def format_share(share: float) -> str:
    """`12.3%`."""
    return f"{100 * share:.1f}%"


def format_ratio(second: float | None, first: float | None) -> str:
    """`1.05x`, how many times `first` is `second`; a dash where either is missing or zero."""
    if not first or second is None:
        return NOTHING
    ratio = second / first
    return f"{ratio:.2f}x" if 0.01 <= abs(ratio) < 100 or ratio == 0 else f"{ratio:.3g}x"


def format_by_unit(value: float | None, unit: str) -> str:
    """A figure in the unit that a `Comparison` names; a dash for None."""
    if value is None:
        return NOTHING
    if unit == "bytes":
        return format_bytes(value)
    if unit == "seconds":
        return format_seconds(value)
    if unit == "flops":
        return format_si(value, "FLOP")
    if unit == "share":
        return format_share(value)
    if unit == "count":
        return format_count(value)
    if unit.startswith("FLOP"):
        return format_si(value, unit)
    return f"{format_number(value)} {unit}"


def format_number(value: float) -> str:
    """`1,234` or `0.0123`: at least three significant digits, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else _three_digits(value)


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
