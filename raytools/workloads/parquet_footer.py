"""What a Parquet file says about itself: columns and number of rows, without reading its data.

The controller has no pyarrow, and a wrong `--label` is to be told before anything travels. Standard library
only. Sources: the Parquet format's README (layout of a file) and parquet.thrift (FileMetaData,
SchemaElement), and Thrift's compact protocol.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import Any

MAGIC = b"PAR1"
_TAIL_BYTES = 8  # length of the footer, and the magic bytes once more
_TRUE, _FALSE, _I8, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_VARINTS = (4, 5, 6)  # i16, i32 and i64
_SCHEMA, _ROWS = 2, 3  # fields of FileMetaData
_NAME, _CHILDREN = 4, 5  # fields of SchemaElement
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")  # what pandas calls row numbers that it saved


@dataclass(frozen=True)
class ParquetFooter:
    """Names of the columns, those of pandas' unnamed indexes left out, and how many rows there are."""

    columns: tuple[str, ...]
    rows: int


def is_parquet(content: bytes) -> bool:
    """Whether it begins and ends as every Parquet file does that is whole and not encrypted."""
    return len(content) > 12 and content[:4] == MAGIC and content[-4:] == MAGIC


def is_unnamed_index(column: str) -> bool:
    """Whether a column is what pandas made of its row numbers: nothing to learn from."""
    return _UNNAMED_INDEX.fullmatch(column) is not None


def read_footer(content: bytes) -> ParquetFooter:
    """Reads the footer of a whole file.

    Raises:
        ValueError: it is no Parquet file, or its footer cannot be read.
    """
    if not is_parquet(content):
        raise ValueError(f"it does not begin and end with {MAGIC.decode()}")
    (length,) = struct.unpack("<I", content[-_TAIL_BYTES:-4])
    if length > len(content) - _TAIL_BYTES - len(MAGIC):
        raise ValueError("its footer is longer than the file")
    try:
        metadata = _struct(io.BytesIO(content[-_TAIL_BYTES - length : -_TAIL_BYTES]))
        return ParquetFooter(_top_columns(metadata[_SCHEMA]), int(metadata[_ROWS]))
    except (
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        struct.error,
        UnicodeError,
    ):
        raise ValueError("its footer cannot be read") from None


def _top_columns(schema: list[dict[int, Any]]) -> tuple[str, ...]:
    """Columns below the root; what is nested inside one follows it in the list and is passed over."""
    names, position = [], 1
    for _ in range(schema[0][_CHILDREN]):
        names.append(schema[position][_NAME].decode())
        position = _after(schema, position)
    return tuple(name for name in names if not is_unnamed_index(name))


def _after(schema: list[dict[int, Any]], position: int) -> int:
    """Where the next sibling stands."""
    children, position = schema[position].get(_CHILDREN, 0), position + 1
    for _ in range(children):
        position = _after(schema, position)
    return position


def _struct(stream: io.BytesIO) -> dict[int, Any]:
    """Fields by their number; each tells its number as the difference from the one before."""
    fields: dict[int, Any] = {}
    number = 0
    while kind_and_step := stream.read(1)[0]:
        step, kind = kind_and_step >> 4, kind_and_step & 0x0F
        number = number + step if step else _zigzag(stream)
        fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else _value(stream, kind)
    return fields


def _value(stream: io.BytesIO, kind: int) -> Any:
    if kind in _VARINTS:
        return _zigzag(stream)
    if kind == _BINARY:
        return stream.read(_varint(stream))
    if kind == _STRUCT:
        return _struct(stream)
    if kind in (_LIST, _SET):
        size_and_kind = stream.read(1)[0]
        size = size_and_kind >> 4
        return [_value(stream, size_and_kind & 0x0F) for _ in range(_varint(stream) if size == 15 else size)]
    if kind in (_TRUE, _FALSE, _I8):
        return stream.read(1)[0]
    if kind == _DOUBLE:
        return struct.unpack("<d", stream.read(8))[0]
    raise TypeError(kind)  # maps: the format has none


def _varint(stream: io.BytesIO) -> int:
    value, shift = 0, 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7


def _zigzag(stream: io.BytesIO) -> int:
    value = _varint(stream)
    return (value >> 1) ^ -(value & 1)
