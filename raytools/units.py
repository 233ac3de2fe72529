"""Sizes and durations as people write them: `90s`, `1h30m`, `2GiB`, `500MB`. The only such parser.

Standard library only (pydantic's ByteSize would do for sizes, but `raytools run` and the nodes cannot
import it, and two parsers would one day disagree).
"""

from __future__ import annotations

import re

_SIZE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
# the number of digits is bounded: beyond it Python's own conversions overflow or refuse
_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*(ms|s|m|h|d)", re.ASCII | re.IGNORECASE)
_PLAIN_NUMBER = re.compile(r"\d{1,18}(?:\.\d{1,18})?", re.ASCII)


def parse_size_bytes(text: str | int) -> int:
    """Bytes of a size such as `2GiB` (binary), `500MB` (decimal), `512M` (binary, as cgroups read it).

    Raises:
        ValueError: saying what was found and what is expected.
    """
    match = _SIZE.fullmatch(str(text).strip())
    factor = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"found {text!r}, expected a size such as 2GiB or 500MB")
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def parse_duration_s(text: str | float) -> float:
    """Seconds of a duration such as `90s`, `1h30m` or `250ms`; a plain number is seconds.

    Raises:
        ValueError: saying what was found and what is expected.
    """
    value = str(text).strip()
    if _PLAIN_NUMBER.fullmatch(value):
        return float(value)
    seconds, end = 0.0, 0
    for part in _DURATION_PART.finditer(value):
        if value[end : part.start()].strip():
            break
        seconds += float(part[1]) * _DURATION_UNITS[part[2].lower()]
        end = part.end()
    if not value or end != len(value):
        raise ValueError(f"found {text!r}, expected a duration such as 90s or 1h30m")
    return seconds


def format_size(size_bytes: float) -> str:
    """A size for people, in binary units: `21.5 GiB`; whole numbers without a fraction."""
    value, unit = float(size_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """A duration for people: `0.42 s`, `12.3 s`, `4m05s`, `1h30m`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest_s:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
