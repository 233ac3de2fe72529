"""Channel `local`: a conda channel in a directory, made from what this machine has.

It offers `python` (the one that runs raytools), `pip` (the wheel that comes with it) and `libgomp`, and
nothing else. It is for machines that reach no conda channel. Equal inputs give byte-identical packages,
so that a lock made from it stays valid.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from raytools.environment.base_python import (
    PREFIX_PLACEHOLDER,
    BasePython,
    patchelf,
    running_python,
    source_files,
    stage,
)
from raytools.environment.conda import index
from raytools.environment.progress import Progress
from raytools.environment.spec import LOCAL_CHANNEL
from raytools.errors import EnvironmentBuildError
from raytools.node.manifest import content_digest, make_manifest, write_json

OFFERED = ("python", "pip", "libgomp")

_RECIPE = 1  # raise it when the same inputs shall give other packages
_EPOCH = datetime(2020, 1, 1, tzinfo=timezone.utc)
_INDEX_NAME = "made.json"
_GOMP = "libgomp.so.1"
_GOMP_WHEEL = "scikit-learn"  # its manylinux wheels bundle libgomp


@dataclass(frozen=True)
class _Recipe:
    """One package: what it is called, what it is made from and how."""

    name: str
    version: str
    depends: tuple[str, ...]
    license: str
    fill: Callable[[Path], None]


def ensure_local_channel(directory: Path, names: Iterable[str], progress: Progress) -> str:
    """Makes the packages that are missing and returns the channel's URL.

    Args:
        directory: where the channel is or will be.
        names: which of `OFFERED` are needed; other names are left for the solver to miss.
        progress: told what is being made.

    Raises:
        EnvironmentBuildError: this machine has nothing to make a package from.
    """
    base = running_python()
    fingerprint = _fingerprint(base)
    made = _read_index(directory)
    missing = [
        name
        for name in OFFERED
        if name in set(names) and not _is_made(directory, made.get(name), fingerprint)
    ]
    if missing:
        _require_working_platform()
        directory.mkdir(parents=True, exist_ok=True)
        for name in missing:
            progress.detail(f"packing {name} for channel `{LOCAL_CHANNEL}`")
            file_name = _make_package(directory, _RECIPES[name](base, progress))
            made[name] = {"fingerprint": fingerprint, "file": file_name}
        index(directory)
        write_json(directory / _INDEX_NAME, made)
    return directory.as_uri()


def require_python(wanted: str) -> None:
    """Refuses if this machine's Python is not the declared one (`3.11` or `3.11.7`).

    Raises:
        EnvironmentBuildError: names both.
    """
    base = running_python()
    parts = wanted.split(".")
    if base.version.split(".")[: len(parts)] != parts:
        raise EnvironmentBuildError(
            f"channel `{LOCAL_CHANNEL}` has Python {base.version}, the one that runs raytools "
            f"({base.executable})",
            expected=f"Python {wanted} (environment.python)",
            fix=f'Install raytools with Python {wanted}, or declare python: "{base.short_version}"',
        )


def locked_packages_are_there(directory: Path, packages: Iterable[dict[str, Any]]) -> bool:
    """Whether the channel has exactly these packages of a lock."""
    return all(_sha256(directory / package["url"]) == package["sha256"] for package in packages)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _read_index(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / _INDEX_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # nothing made yet, or cut short while writing: made again, the result is the same
    return found if isinstance(found, dict) else {}


def _is_made(directory: Path, entry: Any, fingerprint: str) -> bool:
    return (
        isinstance(entry, dict)
        and entry.get("fingerprint") == fingerprint
        and (directory / str(entry.get("file"))).is_file()
    )


def _fingerprint(base: BasePython) -> str:
    """Changes when the Python does; stat only, so that asking costs milliseconds."""
    digest = hashlib.sha256(f"{_RECIPE} {base.version} {base.executable}\n".encode())
    for source, relative in [(base.executable, ""), *source_files(base)]:
        status = source.stat()
        digest.update(f"{relative} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _require_working_platform() -> None:
    if sys.platform != "linux":
        raise EnvironmentBuildError(f"channel `{LOCAL_CHANNEL}` cannot be made on {sys.platform}")


def _subdir() -> str:
    from rattler import Subdir

    return str(Subdir.current())


def _make_package(directory: Path, recipe: _Recipe) -> str:
    """Stages and packs one package; returns its path within the channel."""
    from rattler_build import assemble_package

    subdir = _subdir()
    with tempfile.TemporaryDirectory(prefix="raytools-pack-") as temporary:
        tree = Path(temporary).resolve() / "tree"
        tree.mkdir()
        recipe.fill(tree)
        content = content_digest(make_manifest(tree).entries)
        build = f"h{content[:8]}_0"
        packed = assemble_package(
            name=recipe.name,
            version=recipe.version,
            target_platform=subdir,
            build_string=build,
            output_dir=temporary,
            files_dir=tree,
            depends=list(recipe.depends),
            license=recipe.license,
            summary=f"{recipe.name} as found on the machine that made this channel",
            timestamp=_EPOCH,
            compression_level=3,
        )
        _declare_placeholders(Path(packed.path), tree)
        target = directory / subdir / Path(packed.path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        shutil.copyfile(packed.path, partial)
        partial.replace(target)
    return f"{subdir}/{target.name}"


def _declare_placeholders(package: Path, tree: Path) -> None:
    """Tells the installer which text files name the prefix.

    `assemble_package` packs files as they are; what has to be replaced is listed in `info/paths.json`
    (fields `prefix_placeholder` and `file_mode` of the conda package format), so that is written anew.
    """
    files = {
        str(path.relative_to(tree))
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink() and PREFIX_PLACEHOLDER.encode() in path.read_bytes()
    }
    if not files:
        return
    with zipfile.ZipFile(package) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(package, "w", zipfile.ZIP_STORED) as archive:
        for info, content in members:
            is_info = info.filename.startswith("info-")
            archive.writestr(info, _edit_info(content, files) if is_info else content)


def _edit_info(archive: bytes, files: set[str]) -> bytes:
    """The `info` part of a package with placeholders declared for `files`."""
    import io
    import tarfile

    import zstandard

    result = io.BytesIO()
    source = io.BytesIO(zstandard.ZstdDecompressor().stream_reader(archive).read())
    with tarfile.open(fileobj=source) as old, tarfile.open(fileobj=result, mode="w") as new:
        for member in old:
            stream = old.extractfile(member)
            content = stream.read() if stream else b""
            if member.name == "info/paths.json":
                paths = json.loads(content)
                for entry in paths["paths"]:
                    if entry["_path"] in files:
                        entry |= {"file_mode": "text", "prefix_placeholder": PREFIX_PLACEHOLDER}
                content = json.dumps(paths, indent=2, sort_keys=True).encode()
                member.size = len(content)
            new.addfile(member, io.BytesIO(content) if stream else None)
    return zstandard.ZstdCompressor(level=3).compress(result.getvalue())


def _python(base: BasePython, progress: Progress) -> _Recipe:
    del progress
    return _Recipe("python", base.version, (), "Python-2.0", lambda tree: stage(base, tree))


def _pip(base: BasePython, progress: Progress) -> _Recipe:
    del progress
    wheel = _pip_wheel(base)
    version = wheel.name.split("-")[1]
    depends = (f"python {base.short_version}.*",)
    return _Recipe("pip", version, depends, "MIT", lambda tree: _unpack_pip(base, wheel, tree))


def _pip_wheel(base: BasePython) -> Path:
    """pip as it comes with Python (ensurepip), Debian keeps it elsewhere."""
    import sysconfig

    places = [base.stdlib / "ensurepip" / "_bundled", Path("/usr/share/python-wheels")]
    if configured := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        places.insert(0, Path(configured))
    for place in places:
        wheels = sorted(place.glob("pip-*-py3-none-any.whl"))
        if wheels:
            return wheels[-1]
    raise EnvironmentBuildError(
        f"{base.executable} comes without pip (no wheel in {', '.join(map(str, places))})",
        fix=f"On Debian and Ubuntu: sudo apt install python{base.short_version}-venv",
    )


def _unpack_pip(base: BasePython, wheel: Path, tree: Path) -> None:
    library = tree / "lib" / base.name / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(library)  # noqa: S202 - zipfile, which keeps members below the directory
    for path in library.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tree / "bin").mkdir()
    for name in ("pip", "pip3", f"pip{base.short_version}"):
        script = tree / "bin" / name
        script.write_text(
            f"#!{PREFIX_PLACEHOLDER}/bin/{base.name}\n"
            "import sys\n\nfrom pip._internal.cli.main import main\n\nsys.exit(main())\n",
            encoding="utf-8",
        )
        script.chmod(0o755)


def _libgomp(base: BasePython, progress: Progress) -> _Recipe:
    found = _installed_libgomp(base)
    if found is not None:
        version = _gomp_version(found.read_bytes())
        return _Recipe("libgomp", version, (), _GOMP_LICENSE, lambda tree: _place_libgomp(found, tree))
    progress.note(f"this machine has no {_GOMP}; taking the one that {_GOMP_WHEEL}'s wheel bundles")
    content = _libgomp_from_wheel()

    def fill(tree: Path) -> None:
        target = tree / "lib" / _GOMP
        target.parent.mkdir()
        target.write_bytes(content)
        target.chmod(0o755)
        patchelf("--set-soname", _GOMP, str(target))  # wheels rename what they bundle

    version = _gomp_version(content)
    return _Recipe("libgomp", version, (), _GOMP_LICENSE, fill)


_GOMP_LICENSE = "GPL-3.0-or-later WITH GCC-exception-3.1"


def _gomp_version(content: bytes) -> str:
    """The newest interface the library has (its symbol versions): what programs ask of it."""
    found = re.findall(rb"GOMP_(\d+)\.(\d+)(?:\.(\d+))?", content)
    newest = max((tuple(int(part or 0) for part in match) for match in found), default=(0, 0, 0))
    return ".".join(map(str, newest))


def _installed_libgomp(base: BasePython) -> Path | None:
    """The Python's own, else the one the dynamic loader would take."""
    own = base.prefix / "lib" / _GOMP
    if own.is_file():
        return own.resolve()
    for directory in _loader_directories():
        candidate = directory / _GOMP
        if candidate.is_file():
            return candidate.resolve()
    return None


def _loader_directories() -> list[Path]:
    import sysconfig

    multiarch = sysconfig.get_config_var("MULTIARCH")
    directories = [Path("/lib") / multiarch, Path("/usr/lib") / multiarch] if multiarch else []
    return [*directories, Path("/lib64"), Path("/usr/lib64"), Path("/lib"), Path("/usr/lib")]


def _place_libgomp(source: Path, tree: Path) -> None:
    target = tree / "lib" / _GOMP
    target.parent.mkdir()
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _libgomp_from_wheel() -> bytes:
    """The library out of a manylinux wheel, by pip and its configuration."""
    with tempfile.TemporaryDirectory(prefix="raytools-libgomp-") as temporary:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            "--dest", temporary, _GOMP_WHEEL,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            raise EnvironmentBuildError(
                f"this machine has no {_GOMP}, and pip cannot get {_GOMP_WHEEL}, whose wheel bundles it: "
                f"{done.stderr.strip()[-300:]}",
                fix="Install it: sudo apt install libgomp1",
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            for name in archive.namelist():
                if Path(name).name.startswith("libgomp-") and ".so" in name:
                    return archive.read(name)
    raise EnvironmentBuildError(
        f"this machine has no {_GOMP}, and {wheels[0].name} bundles none",
        fix="Install it: sudo apt install libgomp1",
    )


_RECIPES: dict[str, Callable[[BasePython, Progress], _Recipe]] = {
    "python": _python,
    "pip": _pip,
    "libgomp": _libgomp,
}
