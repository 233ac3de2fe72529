"""Which environments are below `<root>/envs`, which one is current, and what may go."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from raytools.errors import EnvironmentBuildError
from raytools.node.environment_install import (
    ID,
    installed,
    remove_leftovers,
    require_identifier,
    take_away,
)
from raytools.node.environment_place import current_prefix, exclusive, point_current_to
from raytools.node.environment_use import Process, Use, find_use
from raytools.node.manifest import ENVIRONMENT_NAME, read_environment

SCHEMA = "raytools.environments/1"
_SHOWN_PROCESSES = 5


def list_environments(root: Path) -> list[dict[str, Any]]:
    """All environments of this node, the one that was installed last first; processes are not looked at.

    Raises:
        EnvironmentBuildError: node.json is there but cannot be used.
    """
    current, of_node = current_prefix(root), _prefix_in_node_json(root)
    found = [_look(path) for path in _prefixes(root)]
    for item in found:
        item["current"] = _is_same(Path(item["prefix"]), current)
        item["in_node_json"] = _is_same(Path(item["prefix"]), of_node)
    return sorted(found, key=lambda item: (item["installed_at"] or "", item["id"]), reverse=True)


def overview(root: Path) -> dict[str, Any]:
    """`list_environments`, and which of them living processes use.

    Raises:
        EnvironmentBuildError: node.json is there but cannot be used.
    """
    found = list_environments(root)
    use = find_use([Path(item["prefix"]) for item in found])
    for item in found:
        users = use.users[Path(item["prefix"])]
        item["in_use"] = True if users else None if use.unseen else False
        item["processes"] = [process._asdict() for process in users[:_SHOWN_PROCESSES]]
    current = current_prefix(root)
    return {
        "schema": SCHEMA,
        "root": str(root),
        "current": current.name if current else None,
        "environments": found,
        "unseen_processes": len(use.unseen),
    }


def switch(root: Path, identifier: str) -> dict[str, Any]:
    """Points `envs/current` to an installed environment.

    Raises:
        EnvironmentBuildError: it is not installed.
    """
    require_identifier(identifier)
    prefix = root / "envs" / identifier
    with exclusive(root / "envs", lambda _: None):
        former = current_prefix(root)
        if installed(prefix) is None:
            others = ", ".join(sorted(path.name for path in _prefixes(root) if installed(path)))
            raise EnvironmentBuildError(
                f"environment {identifier} is not installed below {root}",
                expected=f"one of {others}" if others else None,
                fix="Install it: ansible-playbook playbooks/environment.yml",
            )
        changed = point_current_to(root, prefix)
    return {
        "changed": changed,
        "id": identifier,
        "prefix": str(prefix),
        "former": former.name if former else None,
    }


def prune(
    root: Path, keep: Collection[str], *, dry_run: bool = False, ignore_unseen: bool = False
) -> dict[str, Any]:
    """Removes environments that nobody needs, and what killed installations left.

    Args:
        root: of this node.
        keep: ids that stay whatever happens.
        dry_run: say what would be removed.
        ignore_unseen: remove also if processes of other users cannot be looked into.

    Raises:
        EnvironmentBuildError: node.json cannot be read, or something cannot be removed.
    """
    removed: list[dict[str, Any]] = []
    kept: list[dict[str, str]] = []
    if not (root / "envs").is_dir():
        return {"dry_run": dry_run, "removed": removed, "kept": kept, "leftovers": []}
    # under the lock: nobody builds, installs or switches meanwhile
    with exclusive(root / "envs", lambda _: None):
        prefixes = list(_prefixes(root))
        use = find_use(prefixes)
        current, of_node = current_prefix(root), _prefix_in_node_json(root)
        for prefix in prefixes:
            why: str | None
            if not ID.fullmatch(prefix.name):
                why = "not named by raytools as an environment"
            elif _is_same(prefix, current):
                why = "current"
            elif _is_same(prefix, of_node):
                why = "named by node.json"
            elif prefix.name in keep:
                why = "asked to keep it"
            else:
                why = _use_of(prefix, use, ignore_unseen)
            if why is not None:
                kept.append({"id": prefix.name, "why": why})
                continue
            notes = installed(prefix)
            size_bytes = notes["size_bytes"] if notes else None
            removed.append({"id": prefix.name, "size_bytes": size_bytes, "complete": notes is not None})
            if not dry_run:
                _remove(prefix)
        leftovers = [] if dry_run else remove_leftovers(root / "envs")
    return {"dry_run": dry_run, "removed": removed, "kept": kept, "leftovers": leftovers}


def _use_of(prefix: Path, use: Use, ignore_unseen: bool) -> str | None:
    users = use.users[prefix]
    if users:
        return f"used by {_named(users)}"
    if use.unseen and not ignore_unseen:
        return (
            f"not known whether it is used: {len(use.unseen)} processes cannot be looked into, "
            f"such as {use.unseen[0]}" + ("" if os.geteuid() == 0 else "; root can")
        )
    return None


def _named(processes: list[Process]) -> str:
    more = len(processes) - 1
    return f"{processes[0]} and {more} more" if more else str(processes[0])


def _remove(prefix: Path) -> None:
    try:
        shutil.rmtree(take_away(prefix))
    except OSError as error:
        raise EnvironmentBuildError(
            f"cannot remove {prefix}: {error}", fix="Run this as the user who owns it"
        ) from error


def _is_same(prefix: Path, other: Path | None) -> bool:
    """The root may be reached by more than one name."""
    return other is not None and os.path.realpath(prefix) == os.path.realpath(other)


def _prefixes(root: Path) -> Iterator[Path]:
    directory = root / "envs"
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if not path.name.startswith(".") and path.is_dir() and not path.is_symlink():
            yield path


def _look(path: Path) -> dict[str, Any]:
    """One directory; `existing-…` holds the notes about an environment that lies elsewhere."""
    elsewhere = path.name.startswith("existing-") and (path / ENVIRONMENT_NAME).is_file()
    try:
        notes = _read_notes(path / ENVIRONMENT_NAME) if elsewhere else read_environment(path)
    except EnvironmentBuildError:
        notes = None
    notes = notes or {}
    return {
        "id": notes.get("id", path.name) if elsewhere else path.name,
        "prefix": notes["prefix"] if elsewhere and "prefix" in notes else str(path),
        "complete": bool(notes) if elsewhere else installed(path) is not None,
        "lock_digest": notes.get("lock_digest"),
        "content_digest": notes.get("content_digest"),
        "size_bytes": notes.get("size_bytes"),
        "files": notes.get("files"),
        "installed_at": notes.get("installed_at") or notes.get("built_at"),
    }


def _read_notes(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _prefix_in_node_json(root: Path) -> Path | None:
    path = root / "node.json"
    try:
        return Path(json.loads(path.read_bytes())["environment"]["prefix"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentBuildError(
            f"cannot tell which environment {path} names: {error!r}",
            fix="Write it again: ansible-playbook playbooks/node.yml",
        ) from error
