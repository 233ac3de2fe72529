"""spec -> lock: which packages exactly. The only step that decides anything, and the only one that asks."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from raytools.environment import conda, pip_part
from raytools.environment.channels import choose_channels
from raytools.environment.former import keep_former, lock_path
from raytools.environment.local_channel import OFFERED, ensure_local_channel, require_python
from raytools.environment.lock import (
    Lock,
    misfits,
    read_current_lock,
    write_lock,
)
from raytools.environment.progress import SILENT, Progress
from raytools.environment.spec import LOCAL_CHANNEL, EnvironmentSpec
from raytools.errors import EnvironmentBuildError
from raytools.project import Project


def lock_environment(
    project: Project, spec: EnvironmentSpec, *, upgrade: bool = False, progress: Progress = SILENT
) -> tuple[Lock, bool]:
    """Locks what is declared; returns the lock and whether its file was changed.

    A lock that fits is kept as it is, without asking anybody, unless `upgrade`.

    Raises:
        EnvironmentBuildError: channels do not answer, nothing satisfies the declaration, or an existing
            environment (`prefix`) is declared, which has no lock.
    """
    if spec.prefix is not None:
        raise EnvironmentBuildError(
            f"environment.prefix is {spec.prefix}: an existing environment is used as it is, not locked",
            fix="Note and check its files: raytools env build",
        )
    present = None if upgrade else read_current_lock(project, spec)
    if present is not None and not misfits(present, spec):
        return present, False
    try:
        lock = _resolve(project, spec, progress)
        path = lock_path(project, lock)
        keep_former(project, spec, lock, progress)
        changed = write_lock(path, lock)
    except OSError as error:
        raise EnvironmentBuildError(f"cannot lock environment {spec.name}: {error}") from error
    return replace(lock, path=path), changed


def _resolve(project: Project, spec: EnvironmentSpec, progress: Progress) -> Lock:
    choice = choose_channels(spec, project.directory, progress)
    progress.phase("solving the conda part")
    packages = _solve_conda(project, spec, choice.channels, progress)
    python = next(package["version"] for package in packages if package["name"] == "python")
    progress.phase("resolving the pip part")
    temporary = Path(tempfile.mkdtemp(prefix="raytools-lock-"))
    try:
        prefix = temporary / "prefix"
        install_conda_part(project, packages, prefix, spec.conda)
        resolved = pip_part.resolve(
            prefix,
            spec.pip,
            directory=project.directory,
            store=wheel_store(project),
            progress=progress,
        )
    finally:
        shutil.rmtree(temporary)
    return Lock(
        name=spec.name,
        python=python,
        platform=next(package["subdir"] for package in packages if package["name"] == "python"),
        channels=choice.channels,
        reason=choice.reason,
        spec=spec.to_json(),
        conda=tuple(packages),
        pip=tuple(resolved),
    )


def _solve_conda(
    project: Project, spec: EnvironmentSpec, channels: tuple[str, ...], progress: Progress
) -> list[dict[str, Any]]:
    """Packages of the conda part; those of channel `local` are noted without this machine's paths."""
    urls = list(channels)
    local_url = None
    if LOCAL_CHANNEL in channels:
        if channels == (LOCAL_CHANNEL,):
            require_python(spec.python)
        names = {name for name in OFFERED if any(wanted.startswith(name) for wanted in spec.conda)}
        local_url = ensure_local_channel(
            local_channel_directory(project), {"python", "pip", *names}, progress
        )
        urls[channels.index(LOCAL_CHANNEL)] = local_url
    specs = [f"python {spec.python}.*", "pip", *spec.conda]
    try:
        packages = conda.solve(urls, specs, cache=conda.cache_directory(project.state_dir))
    except EnvironmentBuildError as error:
        if channels == (LOCAL_CHANNEL,):
            error.fix = f"Channel `{LOCAL_CHANNEL}` offers {', '.join(OFFERED)} and nothing else"
        raise
    for package in packages:
        if local_url is not None and package["url"].startswith(local_url):
            package["channel"] = LOCAL_CHANNEL
            package["url"] = package["url"].removeprefix(local_url).lstrip("/")
    return packages


def local_channel_directory(project: Project) -> Path:
    """Where this project's channel `local` is."""
    return project.state_dir / "channel"


def wheel_store(project: Project) -> Path:
    """Where the files of the pip part are kept between locking and building."""
    return project.state_dir / "cache" / "wheels"


def install_conda_part(
    project: Project, packages: list[dict[str, Any]], prefix: Path, specs: tuple[str, ...]
) -> None:
    """Installs locked conda packages, those of channel `local` from this machine's directory."""
    conda.install(
        packages,
        prefix,
        specs=["python", "pip", *specs],
        cache=conda.cache_directory(project.state_dir),
        local_channel=local_channel_directory(project).as_uri(),
    )
