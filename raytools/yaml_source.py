"""Reads a YAML file that a person wrote: plain data, and the line every key and value stands on.

Nothing here knows cluster.yaml's keys. YAML 1.1's surprises stay out: `1:30` is text, not 90, and
`0123` is text, not 83. Any bytes give data or problems with a line, never another exception.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_VALUES = 10_000  # counted after aliases are expanded: a few lines can describe billions
WHOLE_FILE = "(file)"

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})")
_DECIMAL = re.compile(r"[-+]?[0-9]{1,18}\.[0-9]{1,18}")
_PLAIN_KEY = re.compile(r"[\w./-]{1,60}", re.ASCII)
_PREFIX = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Problem:
    """One mistake in one file; `str()` is the fixed form `FILE:LINE: KEY: found X, expected Y`."""

    file: str
    line: int
    key: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: found {self.found}, expected {self.expected}"


@dataclass(frozen=True)
class Source:
    """What a file says, and where: `lines` of the values, `key_lines` of the keys, by path from the top."""

    file: str
    data: Any
    lines: Mapping[KeyPath, int]
    key_lines: Mapping[KeyPath, int]
    written: Mapping[KeyPath, str]

    def line(self, path: KeyPath) -> int:
        """The line of a key, or of the nearest thing around it if the file does not have it."""
        for length in range(len(path), -1, -1):
            for table in (self.key_lines, self.lines):
                if path[:length] in table:
                    return table[path[:length]]
        return 1


class SourceError(Exception):
    """The file cannot be used as data; `problems` says why."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


def read_source(path: Path) -> Source:
    """Reads and parses one YAML file.

    Raises:
        SourceError: unreadable, empty, not UTF-8, not YAML, too big, too deep, or with a key twice.
    """
    file = shown_path(path)
    text = _read_text(path, file)
    node = _compose(text, file)
    reader = _Reader(file)
    data = reader.value(node, (), 0)
    if reader.problems:
        raise SourceError(*reader.problems)
    return Source(file, data, reader.lines, reader.key_lines, reader.written)


def shown_path(path: Path) -> str:
    """A path as people would type it from here, on one line."""
    full = path.absolute()
    below_here = Path.cwd() in full.parents
    return printable(str(full.relative_to(Path.cwd()) if below_here else full))


def printable(text: str, limit: int = 200) -> str:
    """One line of text that any terminal can show, shortened."""
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe(value: Any, written: str | None = None) -> str:
    """A value as a message shows it: `'text'`, `3.10`, `a list`, `nothing`."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        return printable(repr(value), 60)
    return printable(written or str(value).lower(), 60)


def key_text(path: KeyPath) -> str:
    """`ray.ports.workers[0]` from its path."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (
                part if _PLAIN_KEY.fullmatch(part) else printable(repr(part), 60)
            )
    return text or WHOLE_FILE


def _read_text(path: Path, file: str) -> str:
    def problem(found: str, expected: str, line: int = 1) -> SourceError:
        return SourceError(Problem(file, line, WHOLE_FILE, found, expected))

    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise problem("no such file", "a YAML file") from None
    except IsADirectoryError:
        raise problem("a directory", "a YAML file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise problem(f"an unreadable file ({reason})", "a YAML file") from None
    if len(content) > MAX_BYTES:
        raise problem("more than 1 MiB", "a YAML file written by people")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise problem(
            f"byte 0x{content[error.start]:02x}, which is not UTF-8", "text in UTF-8", line
        ) from None
    return text


class _Loader(yaml.SafeLoader):
    """A composer that stops before deep nesting exhausts Python's stack."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, file: str) -> yaml.Node:
    try:
        loader = _Loader(text)
        node: yaml.Node | None = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"a control character ({ord(text[error.position]):#06x})"
        raise SourceError(Problem(file, line, WHOLE_FILE, found, "printable text")) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        found = printable(error.problem or error.context or "a mistake")
        raise SourceError(
            Problem(file, mark.line + 1 if mark else 1, WHOLE_FILE, f"a YAML error ({found})", "valid YAML")
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # e.g. an escape beyond Unicode
        found = printable(str(error))
        raise SourceError(Problem(file, 1, WHOLE_FILE, f"a YAML error ({found})", "valid YAML")) from None
    if node is None:
        raise SourceError(Problem(file, 1, WHOLE_FILE, "an empty file", "at least one key"))
    return node


@dataclass
class _Reader:
    """Turns composed nodes into data and remembers their lines."""

    file: str
    problems: list[Problem] = field(default_factory=list)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    key_lines: dict[KeyPath, int] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)

    def value(self, node: yaml.Node, path: KeyPath, depth: int) -> Any:
        if depth > MAX_DEPTH or len(self.lines) > MAX_VALUES:  # an alias to its own parent, or a bomb
            found = f"more than {MAX_DEPTH} levels or {MAX_VALUES} values behind aliases"
            raise SourceError(Problem(self.file, _line(node), WHOLE_FILE, found, "plain YAML"))
        self.lines[path] = _line(node)
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, path, "map")
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, path, "seq")
            return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a list or a mapping as a key", "text")
                continue
            key = key_node.value
            here = (*path, key)
            if not _encodable(key):
                self._problem(key_node, here, "a key with characters that are no text", "text")
            elif key in data:
                first = self.key_lines[here]
                self._problem(key_node, here, f"the key twice (first on line {first})", "it once")
            else:
                self.key_lines[here] = _line(key_node)
                data[key] = self.value(value_node, here, depth + 1)
        return data

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text: str = node.value
        self.written[path] = text
        kind = node.tag.removeprefix(_PREFIX)
        convert = _SCALARS.get(kind)
        if convert is None:
            self._problem(node, path, f"the tag {printable(node.tag, 60)}", "plain YAML")
            return None
        if not _encodable(text):
            self._problem(node, path, "characters that are no text", "text")
            return None
        return convert(text)

    def _check_tag(self, node: yaml.Node, path: KeyPath, kind: str) -> None:
        if node.tag != _PREFIX + kind:
            self._problem(node, path, f"the tag {printable(node.tag, 60)}", "plain YAML")

    def _problem(self, node: yaml.Node, path: KeyPath, found: str, expected: str) -> None:
        self.problems.append(Problem(self.file, _line(node), key_text(path), found, expected))


def _integer(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text) else text


def _decimal(text: str) -> float | str:
    return float(text) if _DECIMAL.fullmatch(text) else text


def _boolean(text: str) -> bool | str:
    return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(
        text.lower(), text
    )


def _nothing(text: str) -> None:
    del text


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": _integer,
    "float": _decimal,
    "bool": _boolean,
    "null": _nothing,
    "timestamp": str,  # a date means nothing in cluster.yaml: what was written is more use in a message
    "merge": str,
    "value": str,
}


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _encodable(text: str) -> bool:
    return "\0" not in text and not any(0xD800 <= ord(character) <= 0xDFFF for character in text)
