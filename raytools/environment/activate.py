"""Variables for people who want to work in the environment by hand. Nothing else relies on them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytools.errors import EnvironmentBuildError
from raytools.node import driver


def activation(prefix: Path, root: Path) -> dict[str, str]:
    """Variables to export; those in `driver.PREPENDED` go in front of what is there.

    Where node.json exists (the cluster was started on this machine), Ray's address and token too.

    Raises:
        EnvironmentBuildError: node.json is damaged.
    """
    node = _read_node(root)
    if node is None:
        return {"PATH": str(prefix / "bin"), "CONDA_PREFIX": str(prefix), "RAYTOOLS_ROOT": str(root)}
    return driver.variables(node, str(prefix))


def warning(root: Path) -> str | None:
    """What to know before a driver is started by hand on this machine."""
    node = _read_node(root)
    if node is None or driver.isolated_group(node) is None:
        return None
    return (
        "ray.isolation is on: a driver that starts outside of Ray's unit ends the raylet of this machine. "
        f"Start drivers by: {driver.command(node)} PROGRAM"
    )


def _read_node(root: Path) -> dict[str, Any] | None:
    path = root / "node.json"
    try:
        node: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = driver.variables(node, ""), driver.isolated_group(node)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentBuildError(
            f"cannot use {path}: {error!r}", fix="Write it again: ansible-playbook playbooks/cluster.yml"
        ) from error
    return node


def as_shell(variables: Mapping[str, str]) -> str:
    """Lines for `eval` in any POSIX shell, whatever the values contain."""
    lines = []
    for name, value in variables.items():
        rest = f'"${{{name}:+:${name}}}"' if name in driver.PREPENDED else ""
        lines.append(f"export {name}={shlex.quote(value)}{rest}\n")
    return "".join(lines)
