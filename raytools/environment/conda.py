"""The conda part of an environment: solve, install, index. The work is done by py-rattler (conda_worker)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from raytools.environment.spec import LOCAL_CHANNEL
from raytools.errors import EnvironmentBuildError

_KEPT = (
    "name", "version", "build", "build_number", "subdir", "noarch", "depends", "constrains", "license",
    "timestamp", "size", "md5", "sha256", "python_site_packages_path", "channel", "url",
)  # fmt: skip


def cache_directory(state_dir: Path) -> Path:
    """Where conda packages are kept: rattler's own variable decides, else the project's state."""
    configured = os.environ.get("RATTLER_CACHE_DIR")
    return Path(configured) if configured else state_dir / "cache" / "conda"


def solve(channels: list[str], specs: list[str], *, cache: Path) -> list[dict[str, Any]]:
    """Packages that satisfy `specs`, sorted by name, each with what is needed to install it again.

    Args:
        channels: names or URLs, the first that has a package wins.
        specs: conda match specs.
        cache: see `cache_directory`.

    Raises:
        EnvironmentBuildError: a channel does not answer, or no packages satisfy the specs.
    """
    request = {"action": "solve", "channels": channels, "specs": specs, "cache": str(cache)}
    records = _ask(request, f"cannot solve {', '.join(map(repr, specs))} from {', '.join(channels)}")
    packages = [{key: record[key] for key in _KEPT if record.get(key)} for record in records]
    for package, record in zip(packages, records, strict=True):
        package["build_number"] = record["build_number"]
        if not record.get("sha256"):
            raise EnvironmentBuildError(
                f"channel {record['channel']} gives no sha256 for {record['name']}, so it cannot be locked",
                expected="a channel whose repodata has sha256 for every package",
            )
    return sorted(packages, key=lambda package: str(package["name"]))


def install(
    packages: list[dict[str, Any]], prefix: Path, *, specs: list[str], cache: Path, local_channel: str
) -> None:
    """Installs exactly these packages into an empty prefix, then takes this machine out of their metadata.

    Args:
        packages: as in the lock.
        prefix: where to.
        specs: what was asked for, for conda's notes.
        cache: see `cache_directory`.
        local_channel: URL of channel `local`, whose packages are locked with relative addresses.

    Raises:
        EnvironmentBuildError: a package cannot be had, or is not what was locked.
    """
    addressed = [
        {**package, "channel": local_channel, "url": f"{local_channel}/{package['url']}"}
        if is_local(package)
        else package
        for package in packages
    ]
    request = {
        "action": "install",
        "packages": addressed,
        "prefix": str(prefix),
        "specs": specs,
        "cache": str(cache),
    }
    _ask(request, f"cannot install the conda packages into {prefix}")
    _normalise_metadata(prefix, {package["name"]: package for package in packages})


def index(directory: Path) -> None:
    """Makes a directory of packages a channel."""
    _ask({"action": "index", "directory": str(directory)}, f"cannot index {directory}")


def _ask(request: dict[str, Any], failure: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "raytools.environment.conda_worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not done.stdout:
        raise EnvironmentBuildError(f"{failure}: {done.stderr.strip()[-500:] or f'exit {done.returncode}'}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise EnvironmentBuildError(f"{failure}: {answer['message'].strip()}")
    return answer["result"]


def _normalise_metadata(prefix: Path, packages: dict[str, dict[str, Any]]) -> None:
    """Makes conda's notes the same wherever the environment is built, and readable for every user.

    They name the cache the files came from, which nobody needs: they were copied. A package of channel
    `local` has no address that means anything elsewhere.
    """
    for path in sorted((prefix / "conda-meta").glob("*.json")):
        record = json.loads(path.read_bytes())
        for key in ("extracted_package_dir", "package_tarball_full_path", "link", "indexed_timestamp"):
            record.pop(key, None)
        if is_local(packages[record["name"]]):
            record["channel"] = LOCAL_CHANNEL
            record["url"] = f"file:///{LOCAL_CHANNEL}/{record['subdir']}/{record['fn']}"
        path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        path.chmod(0o644)


def is_local(package: dict[str, Any]) -> bool:
    """Whether a locked package comes from channel `local`."""
    return bool(package["channel"] == LOCAL_CHANNEL)
