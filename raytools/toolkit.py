"""Puts the toolkit on a node: this package alone, pure Python, beside the environment and independent of it.

`python -m raytools.toolkit --root DIR` installs it on this machine. Updating it neither rebuilds nor renames
an environment; files are replaced one by one, so that a running import sees the old file or the new one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from raytools import __version__
from raytools.errors import RaytoolsError

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Toolkit:
    """Where the toolkit is, and whether this call changed anything there."""

    changed: bool
    path: str
    version: str


def install_toolkit(root: Path, python: Path | None = None) -> Toolkit:
    """Makes `<root>/toolkit/<version>` equal to this package.

    Args:
        root: of the node, on this machine.
        python: the environment's; compiles the files, so that a user who may not write there does not
            compile them anew at every start.

    Raises:
        RaytoolsError: the directory cannot be written, or the package cannot be compiled.
    """
    target = root / "toolkit" / __version__
    wanted = _files()
    try:
        changed = _write_changed(target, wanted) + _remove_others(target, set(wanted))
    except OSError as error:
        raise RaytoolsError(
            f"the toolkit cannot be written to {target} ({error.strerror})",
            fix="Choose another root (inventory variable raytools_root), or become root (ansible_become).",
        ) from error
    if changed and python is not None and python.exists():
        _compile(target, python)
    return Toolkit(bool(changed), str(target), __version__)


def _files() -> dict[str, bytes]:
    """Relative path -> content: the package, and the metadata by which its workloads are found."""
    files = {
        f"raytools/{path.relative_to(_PACKAGE).as_posix()}": path.read_bytes()
        for path in _PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = f"raytools-{__version__}.dist-info"
    files[f"{information}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: raytools\nVersion: {__version__}\n".encode()
    )
    files[f"{information}/entry_points.txt"] = _entry_points().encode()
    return files


def _entry_points() -> str:
    try:
        return metadata.distribution("raytools").read_text("entry_points.txt") or ""
    except metadata.PackageNotFoundError:
        return ""  # run from a source tree: nothing is registered by entry point


def _write_changed(target: Path, wanted: dict[str, bytes]) -> int:
    """Writes what is missing or differs; returns how many files that were."""
    written = 0
    for name, content in wanted.items():
        path = target / name
        if path.is_file() and path.read_bytes() == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_bytes(content)
        new.replace(path)
        written += 1
    return written


def _remove_others(target: Path, wanted: set[str]) -> int:
    """Removes files of an earlier state; returns how many files that were."""
    others = [path for path in _own_files(target) if path.relative_to(target).as_posix() not in wanted]
    for path in others:
        path.unlink()
    return len(others)


def _own_files(target: Path) -> Iterator[Path]:
    return (path for path in target.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _compile(target: Path, python: Path) -> None:
    done = subprocess.run(
        [str(python), "-m", "compileall", "-q", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RaytoolsError(
            f"the toolkit does not compile with {python}: {done.stdout.strip() or done.stderr.strip()}",
            expected="Python 3.10 or newer",
        )


def main(argv: list[str] | None = None) -> int:
    """`python -m raytools.toolkit --root DIR [--python FILE]`: prints `{"changed": …, "path": …}`."""
    parser = argparse.ArgumentParser(prog="python -m raytools.toolkit", description=__doc__)
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--python", type=Path)
    arguments = parser.parse_args(argv)
    try:
        toolkit = install_toolkit(arguments.root, arguments.python)
    except RaytoolsError as error:
        print(f"toolkit: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(asdict(toolkit)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
