"""Variables for people who want to work in the environment by hand. Nothing else relies on them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytools.errors import EnvironmentBuildError

PREPENDED = ("PATH", "PYTHONPATH")


def activation(prefix: Path, root: Path) -> dict[str, str]:
    """Variables to export; those in `PREPENDED` go in front of what is there.

    Where node.json exists (the cluster was started on this machine), Ray's address and token too.

    Raises:
        EnvironmentBuildError: node.json is damaged.
    """
    variables = {"PATH": str(prefix / "bin"), "CONDA_PREFIX": str(prefix), "RAYTOOLS_ROOT": str(root)}
    node = _read_node(root / "node.json")
    if node is None:
        return variables
    ray = node["ray"]
    variables["RAY_ADDRESS"] = ray["gcs_address"]
    variables["RAY_AUTH_MODE"] = ray["auth"]
    if ray["auth"] == "token":
        variables["RAY_AUTH_TOKEN_PATH"] = ray["token_path"]
    if node.get("toolkit"):
        variables["PYTHONPATH"] = node["toolkit"]
    return variables


def _read_node(path: Path) -> Any:
    try:
        node = json.loads(path.read_text(encoding="utf-8"))
        _ = node["ray"]["gcs_address"], node["ray"]["auth"], node["ray"]["token_path"]
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
        rest = f'"${{{name}:+:${name}}}"' if name in PREPENDED else ""
        lines.append(f"export {name}={shlex.quote(value)}{rest}\n")
    return "".join(lines)
