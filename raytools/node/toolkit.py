"""Unpacks the toolkit's zip: `python3 -m raytools.node toolkit install --zip FILE --root DIR --digest HEX`.

Makes `<root>/toolkit/<version>` equal to what the zip holds. Files are replaced one by one, so that a running
import sees the old file or the new one. Standard library only: it runs from the zip itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from raytools import __version__
from raytools.errors import RaytoolsError

DIGEST_NAME = "digest"
"""Beside the packages in `<root>/toolkit/<version>`: which zip this is. Written last."""


def installed_digest(root: str | Path) -> str | None:
    """Which toolkit is installed below a root, None if none of this version is, or not all of it."""
    try:
        return Path(root, "toolkit", __version__, DIGEST_NAME).read_text().strip() or None
    except OSError:
        return None


def install(archive: Path, root: Path, digest: str, python: Path | None) -> bool:
    """Returns whether anything has changed.

    Args:
        archive: the zip.
        root: of this node.
        digest: names the zip's content.
        python: the environment's; compiles the files, because Ray's user may not write there.

    Raises:
        RaytoolsError: it cannot be written or compiled.
    """
    target = root / "toolkit" / __version__
    try:
        with zipfile.ZipFile(archive) as packed:
            wanted = {name: packed.read(name) for name in packed.namelist()}
        (target / DIGEST_NAME).unlink(missing_ok=True)
        changed = _write_changed(target, wanted) + _remove_others(target, wanted)
        if python is not None:
            _compile(target, python)
        (target / DIGEST_NAME).write_text(digest + "\n")
        _remove_other_zips(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise RaytoolsError(
            f"the toolkit cannot be installed in {target} ({error})",
            expected="a directory this user may write, with 5 MB to spare",
        ) from error
    return changed > 0


def _write_changed(target: Path, wanted: Mapping[str, bytes]) -> int:
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


def _remove_others(target: Path, wanted: Mapping[str, bytes]) -> int:
    """Removes files of an earlier state; returns how many files that were."""
    others = [path for path in _own_files(target) if path.relative_to(target).as_posix() not in wanted]
    for path in others:
        path.unlink()
    return len(others)


def _own_files(target: Path) -> Iterator[Path]:
    return (path for path in target.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _remove_other_zips(archive: Path) -> None:
    for path in archive.parent.glob("raytools-*.zip"):
        if path != archive:
            path.unlink(missing_ok=True)


def _compile(target: Path, python: Path) -> None:
    command = [str(python), "-m", "compileall", "-q", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RaytoolsError(
            f"the toolkit does not compile with {python}: {done.stdout.strip() or done.stderr.strip()}",
            expected="Python 3.10 or newer",
        )


def main(argv: list[str]) -> int:
    """Prints `{"changed": …, "path": …}`; 1 if it cannot be installed."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node toolkit", description=__doc__)
    parser.add_argument("command", choices=["install"])
    parser.add_argument("--zip", required=True, type=Path, dest="archive")
    parser.add_argument("--root", required=True, type=Path)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--python", type=Path, help="the environment's: compiles what is installed")
    options = parser.parse_args(argv)
    os.umask(0o022)
    try:
        changed = install(options.archive, options.root, options.digest, options.python)
    except RaytoolsError as error:
        print(f"toolkit: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({"changed": changed, "path": str(options.root / "toolkit" / __version__)}))
    return 0
