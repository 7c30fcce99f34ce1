"""Numbers as people read them: short, with their unit; and round numbers for the ticks of an axis."""

from __future__ import annotations

import math

from workbench.terminal import byte_unit, in_bytes

_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float, unit: str = "") -> str:
    """Format a measured value in about three significant digits: ``0.0312``, ``12.4k``, ``3.1e-5``, ``1.2 GiB``."""
    if unit == "bytes":
        return in_bytes(value)
    text = _plain(value)
    return f"{text} {unit}" if unit else text


def duration(seconds: float) -> str:
    """Say a time in its two largest units: ``45 s``, ``3 min 20 s``, ``2 h 5 min``; "" below 0 (unknown)."""
    if seconds < 0 or not math.isfinite(seconds):
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for big, small, big_name, small_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big} {big_name}" + (f" {rest} {small_name}" if rest else "")
    raise AssertionError("unreachable")


def count(value: int) -> str:
    """Format a count with separators."""
    return f"{value:,}"


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[tuple[float, str]]:
    """Return at most ``most`` round numbers within [low, high] with their labels; only whole ones if asked."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low or most < 1:
        return []
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(max(raw, 1.0) if whole else raw))
    step = next(
        s * power
        for s in ((1, 2, 5, 10, 20, 50) if whole else (1, 2, 2.5, 5, 10, 20))
        if math.floor(high / (s * power)) - math.ceil(low / (s * power)) < most
    )
    first = math.ceil(low / step - 1e-9)
    values = [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, first + most)]
    values = [value for value in values if value <= high + step * 1e-9]
    return [(value, _tick_label(value, step)) for value in values]


def log_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return ticks for an axis of log10 values: powers of ten, with 2 and 5 between when the range is short."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    decades = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [math.log10(s) + d for d in decades for s in steps if low <= math.log10(s) + d <= high]
        if len(found) <= most:
            break
    stride = max(1, -(-len(found) // most))
    if len(found) < 2:
        return [(math.log10(value), text) for value, text in ticks(10**low, 10**high, most) if value > 0]
    return [(value, _power_label(10**value)) for value in found[::stride]]


def byte_ticks(low: float, high: float, most: int, *, log: bool = False) -> list[tuple[float, str]]:
    """Return ticks for an axis of bytes, round in the unit that is written; with ``log`` the range is of log10."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return []
    factor, unit = byte_unit(10 ** min(high, 300.0) if log else max(abs(low), abs(high)))
    if log:
        shift = math.log10(factor)
        found = [(value + shift, text) for value, text in log_ticks(low - shift, high - shift, most)]
    else:
        found = [(value * factor, text) for value, text in ticks(low / factor, high / factor, most)]
    return [(value, f"{text} {unit}" if text != "0" else text) for value, text in found]


def _tick_label(value: float, step: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e4 or step >= 1e3:
        factor, suffix = next(((f, s) for f, s in _SUFFIXES if abs(value) >= f), (1.0, ""))
        text = f"{value / factor:.{_decimals(step / factor)}f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text) + suffix
    if step < 1e-4:
        return _scientific(value)
    return f"{value:.{_decimals(step)}f}"


def _power_label(value: float) -> str:
    value = float(f"{value:.6g}")
    return f"{value:.3f}".rstrip("0").rstrip(".") if 2e-3 <= value < 1e4 else _plain(value)


def _decimals(step: float) -> int:
    """How many decimals tell the multiples of ``step`` apart."""
    return next((d for d in range(7) if abs(step * 10**d - round(step * 10**d)) < 1e-6 and step * 10**d > 0.5), 6)


def _plain(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("-" if value < 0 else "") + "∞"
    size_ = abs(value)
    if size_ == 0:
        return "0"
    if size_ <= 1e-3:
        return _scientific(value)
    if size_ >= 1e5:
        factor, suffix = next((f, s) for f, s in _SUFFIXES if size_ >= f)
        return _digits(value / factor) + suffix
    return _digits(value)


def _digits(value: float) -> str:
    if value == round(value) and abs(value) < 1e5:
        return f"{value:.0f}"
    before = math.floor(math.log10(abs(value))) + 1
    return f"{value:.{min(4, max(0, 3 - before))}f}"


def _scientific(value: float) -> str:
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
