"""The kinds of values cluster.yaml has: sizes, durations, ports, names. Each knows what it expects.

A kind is a `Value` in a type annotation. It reads what a person wrote, says in one phrase what it
expected if that cannot be read, and writes it back so that nothing is lost on the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from raytools.units import parse_duration_s, parse_size_bytes

AUTO = "auto"
_LONGEST_S = 366 * 86400
_BIGGEST_BYTES = 2**60
_SIZE_UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_DURATION_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000))


@dataclass(frozen=True, eq=False)  # typing needs metadata that can be hashed
class Value:
    """Pydantic metadata for one kind of value.

    Args:
        read: from plain YAML data to the Python value; raises ValueError if it cannot.
        expected: what a message says was expected.
        schema: its JSON schema.
        write: from the Python value to plain YAML data.
    """

    read: Callable[[Any], Any]
    expected: str
    schema: dict[str, Any]
    write: Callable[[Any], Any] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """One plain function instead of the annotated type's own, laxer rules."""
        del source, handler
        if self.write is None:
            return core_schema.no_info_plain_validator_function(self._checked)
        writer = core_schema.plain_serializer_function_ser_schema(self.write, when_used="json")
        return core_schema.no_info_plain_validator_function(self._checked, serialization=writer)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        """The schema for editors; a value that is wrong there is wrong here."""
        del schema, handler
        return dict(self.schema)

    def _checked(self, value: Any) -> Any:
        try:
            return self.read(value)
        except ValueError:
            raise PydanticCustomError("expected", "{expected}", {"expected": self.expected}) from None


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def text(pattern: str, expected: str) -> Value:
    """A text that matches the whole pattern."""

    def read(value: Any) -> str:
        _require(isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None)
        return str(value)

    return Value(read, expected, {"type": "string", "pattern": f"^(?:{pattern})$"})


def choice(*values: str) -> Value:
    """One of a few words."""

    def read(value: Any) -> str:
        _require(isinstance(value, str) and value in values)
        return str(value)

    return Value(read, " or ".join(values), {"enum": list(values)})


def flag() -> Value:
    """true or false, and no text or number that might mean it."""

    def read(value: Any) -> bool:
        _require(isinstance(value, bool))
        return bool(value)

    return Value(read, "true or false", {"type": "boolean"})


def number(low: int, high: int) -> Value:
    """A whole number within its range."""

    def read(value: Any) -> int:
        _require(_is_whole(value) and low <= value <= high)
        return int(value)

    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Value(read, f"a whole number from {low} to {high}", schema)


def size(minimum: str = "0") -> Value:
    """Bytes, written as 2GiB or 500MB."""
    least_bytes = parse_size_bytes(minimum)

    def read(value: Any) -> int:
        _require(_is_whole(value) or isinstance(value, str))
        size_bytes = parse_size_bytes(value)
        _require(least_bytes <= size_bytes <= _BIGGEST_BYTES)
        return size_bytes

    at_least = f" of at least {minimum}" if least_bytes else ""
    return Value(read, f"a size such as 2GiB or 500MB{at_least}", {"type": ["string", "integer"]}, write_size)


def duration(minimum_s: float = 0.0) -> Value:
    """Seconds, written as 90s or 1h30m, exact to the millisecond."""

    def read(value: Any) -> float:
        _require(isinstance(value, int | float | str) and not isinstance(value, bool))
        seconds = parse_duration_s(value) if isinstance(value, str) else float(value)
        _require(minimum_s <= seconds <= _LONGEST_S)
        return round(seconds, 3)

    at_least = f" of at least {minimum_s:g}s" if minimum_s else ""
    expected = f"a duration such as 90s or 1h30m{at_least}"
    return Value(read, expected, {"type": ["string", "number"]}, write_duration)


def auto_or(kind: Value) -> Value:
    """`auto` (None in Python) or a value of another kind."""

    def read(value: Any) -> Any:
        return None if value is None or value == AUTO else kind.read(value)

    def write(value: Any) -> Any:
        if value is None:
            return AUTO
        return kind.write(value) if kind.write else value

    return Value(read, f"auto or {kind.expected}", {"anyOf": [{"const": AUTO}, kind.schema]}, write)


def port_range() -> Value:
    """The first and the last port of a range."""

    def read(value: Any) -> tuple[int, int]:
        _require(isinstance(value, list | tuple) and len(value) == 2)
        first, last = value
        _require(all(_is_whole(port) and 1 <= port <= 65535 for port in (first, last)) and first < last)
        return (first, last)

    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
    return Value(read, "the first and the last port, such as [20000, 20999]", schema, list)


def variable_value() -> Value:
    """What an environment variable is set to. Whole numbers are taken as written; true, 1.10 and the
    like would reach a process as something else than what stands in the file."""

    def read(value: Any) -> str:
        _require(isinstance(value, str) or _is_whole(value))
        return str(value)

    return Value(read, "text in quotes or a whole number", {"type": ["string", "integer"]})


def write_size(size_bytes: int) -> int | str:
    """A size without losing a byte: `2GiB`, else the number of bytes."""
    for unit, factor in _SIZE_UNITS:
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return size_bytes


def write_duration(seconds: float) -> str:
    """A duration without losing a millisecond: `1h`, `90s`, `250ms`."""
    milliseconds = round(seconds * 1000)
    for unit, factor in _DURATION_UNITS:
        if milliseconds % factor == 0 and (milliseconds or unit == "s"):
            return f"{milliseconds // factor}{unit}"
    return f"{milliseconds}ms"
