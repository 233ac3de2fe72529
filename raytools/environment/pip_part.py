"""The pip part of an environment: resolve to files with hashes, install exactly those files.

pip.conf, PIP_* and proxy variables stay in force: they are how a site says where packages come from.
Only what would put packages elsewhere than into the environment is overruled. It is the controller's pip
that works (`pip --python`), with the environment's Python: its version is known, and it is a fast one.

Between resolving and installing, the chosen files are kept in a store, named by their sha256. To find a
file in an index by its hash, pip reads the pages of all its versions: 30 s for a hundred packages.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raytools.environment.progress import Progress
from raytools.errors import EnvironmentBuildError

ALWAYS = "psutil"
"""The one package that raytools needs on every node."""


def resolve(
    prefix: Path, requirements: Sequence[str], *, directory: Path, store: Path, progress: Progress
) -> list[dict[str, Any]]:
    """The packages pip would install into `prefix`: name, version, sha256, sorted by name.

    Args:
        prefix: an environment with the conda part only.
        requirements: as declared; psutil is added.
        directory: where pip runs, for relative paths in requirements.
        store: where the files are kept for `install`.
        progress: told what pip is doing.

    Raises:
        EnvironmentBuildError: pip finds no solution, or a package that cannot be pinned by a hash.
    """
    with tempfile.TemporaryDirectory(prefix="raytools-pip-") as temporary:
        report = Path(temporary, "report.json")
        listing = Path(temporary, "requirements.txt")
        _write_lines(listing, [*requirements, ALWAYS])
        arguments = ["install", "--dry-run", f"--report={report}", f"--requirement={listing}"]
        _pip(prefix, arguments, directory, progress, "pip cannot resolve environment.pip")
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    packages = sorted(map(_locked, found), key=lambda package: str(package["name"]))
    progress.detail("keeping the files")
    with contextlib.suppress(EnvironmentBuildError):
        # the report leaves out passwords, so an index that wants one refuses; the build asks by name then
        _fetch(prefix, [item["download_info"]["url"] for item in found], store, progress)
    _forget_others(store, packages)
    return packages


def _forget_others(store: Path, packages: Sequence[dict[str, Any]]) -> None:
    """Files of former locks are not needed again."""
    kept = {package["sha256"] for package in packages}
    for directory in store.iterdir():
        if directory.name not in kept:
            shutil.rmtree(directory)


def _locked(item: dict[str, Any]) -> dict[str, Any]:
    from packaging.utils import canonicalize_name

    name, version = item["metadata"]["name"], item["metadata"]["version"]
    source = item["download_info"]
    sha256 = source.get("archive_info", {}).get("hashes", {}).get("sha256")
    if sha256 is None:
        raise EnvironmentBuildError(
            f"pip package {name} {version} has no sha256 (from {source['url']})",
            expected="a wheel or source archive; a repository or directory can change while its name stays",
            fix="Build a wheel of it and put that into a directory for PIP_FIND_LINKS",
        )
    package = {"name": str(canonicalize_name(name)), "version": version, "sha256": sha256}
    if item.get("is_direct"):
        package["url"] = source["url"]
    return package


def install(prefix: Path, packages: Sequence[dict[str, Any]], *, store: Path, progress: Progress) -> None:
    """Installs exactly these files into `prefix`; their byte code is compiled later, in parallel.

    Raises:
        EnvironmentBuildError: a package cannot be had, or is not the one that was locked.
    """
    missing = [package for package in packages if _stored(store, package["sha256"]) is None]
    if missing:
        progress.detail(f"fetching {len(missing)} files")
        _fetch(prefix, list(map(_requirement, missing)), store, progress)
    with tempfile.TemporaryDirectory(prefix="raytools-pip-") as temporary:
        sources = []
        for package in packages:
            file = _stored(store, package["sha256"])
            if file is None:
                raise EnvironmentBuildError(
                    f"pip fetched another file for {package['name']} {package['version']} than was locked"
                )
            Path(temporary, file.name).symlink_to(file)
            if file.suffix != ".whl":
                sources.append(package)
        wheels = [package for package in packages if package not in sources]
        arguments = ["install", "--no-deps", "--no-compile", f"--find-links={temporary}"]
        # a source archive is built, and what it is built with comes from the index
        for part, options in ((wheels, ["--no-index"]), (sources, [])):
            if part:
                listing = Path(temporary, "requirements.txt")
                _write_lines(listing, [_requirement(package, by_url=False) for package in part])
                options = [*arguments, *options, "--require-hashes", f"--requirement={listing}"]
                _pip(prefix, options, Path(temporary), progress, "pip cannot install what was locked")


def _requirement(package: dict[str, Any], *, by_url: bool = True) -> str:
    where = f" @ {package['url']}" if by_url and "url" in package else f"=={package['version']}"
    return f"{package['name']}{where} --hash=sha256:{package['sha256']}"


def _fetch(prefix: Path, lines: list[str], store: Path, progress: Progress) -> None:
    """Downloads files (out of pip's cache, if they are there) and stores them by their sha256."""
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=store) as temporary:
        listing = Path(temporary, "requirements.txt")
        files = Path(temporary, "files")
        _write_lines(listing, lines)
        arguments = ["download", "--no-deps", f"--dest={files}", f"--requirement={listing}"]
        _pip(prefix, arguments, Path(temporary), progress, "pip cannot download what was locked")
        for file in files.iterdir():
            target = store / _sha256(file) / file.name
            target.parent.mkdir(exist_ok=True)
            file.replace(target)


def _stored(store: Path, sha256: str) -> Path | None:
    return next((file for file in (store / sha256).glob("*") if file.is_file()), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _pip(prefix: Path, arguments: list[str], directory: Path, progress: Progress, failure: str) -> None:
    command = [
        sys.executable, "-m", "pip", f"--python={prefix / 'bin' / 'python'}", *arguments,
        "--no-input", "--progress-bar=off", "--disable-pip-version-check",
    ]  # fmt: skip
    if arguments[0] == "install":
        command += ["--no-warn-script-location", "--root-user-action=ignore", "--no-user"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(
            command,
            cwd=directory,
            env=_child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        last_lines: deque[str] = deque(maxlen=5)
        for line in process.stdout:
            last_lines.append(line.strip())
            if line.startswith(("Collecting ", "Downloading ", "Installing ", "  Downloading ")):
                progress.detail(line.strip()[:100])
        if process.wait():
            complaints.seek(0)
            raise EnvironmentBuildError(f"{failure}: {_complaint(complaints.read(), last_lines)}")


def _complaint(text: str, last_lines: Sequence[str]) -> str:
    """pip's own error, from its first line that is one."""
    lines = [line for line in text.splitlines() if not line.startswith("WARNING")]
    start = next((number for number, line in enumerate(lines) if line.startswith("ERROR")), 0)
    return "\n".join(lines[start : start + 25]).strip() or " / ".join(last_lines)


def _child_environment() -> dict[str, str]:
    """Ours, without what would lead pip to another Python or another place."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON")
    }
    # sites set this to protect system Pythons; a conda environment is not a virtualenv in pip's eyes
    environment["PIP_REQUIRE_VIRTUALENV"] = "0"
    environment["PYTHONNOUSERSITE"] = "1"
    return environment
