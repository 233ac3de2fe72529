"""One file for a bug report: what the doctor found and knew, and the ends of the nodes' logs; no secrets."""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

from raytools.doctor.model import Report
from raytools.doctor.report import to_json, to_text
from raytools.errors import RaytoolsError, TransportError
from raytools.inventory import load_inventory
from raytools.node.logs import masked
from raytools.project import Project
from raytools.transport import NodeCommand, call

_PACKAGES = ("ansible-core", "fabric", "paramiko", "pydantic", "typer", "rich")
_TEXT_WIDTH = 110


def write_bundle(path: Path, project: Project, report: Report, wall_s: float, timeout_s: float) -> None:
    """Writes it whole or not at all.

    Args:
        path: a .tar.gz to write.
        project: whose cluster.yaml and nodes.
        report: what the doctor found just now.
        wall_s: how long that took.
        timeout_s: for the logs of each node.

    Raises:
        RaytoolsError: it cannot be written.
    """
    parts = {
        "doctor.txt": to_text(report, wall_s, _TEXT_WIDTH),
        "doctor.json": json.dumps(to_json(report), indent=1),
        "inspections.json": json.dumps(
            {node.name: node.inspection for node in report.gathered.nodes}, indent=1
        ),
        "controller.json": json.dumps(_controller(), indent=1),
        "cluster.yaml": _text(project.config_path),
        **_logs(project, timeout_s),
    }
    packed = _packed({name: masked(text) for name, text in parts.items()})
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(packed)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RaytoolsError(f"--bundle {path} cannot be written ({error.strerror})") from error


def _logs(project: Project, timeout_s: float) -> dict[str, str]:
    hosts = load_inventory(project.inventory_path).hosts
    commands = {host.name: NodeCommand(["logs", "--root", host.root]) for host in hosts}
    found: dict[str, str] = {}
    for name, answer in call(hosts, commands, timeout_s, state_dir=project.state_dir).items():
        try:
            found |= {f"nodes/{name}/{log}": text for log, text in answer.json().items()}
        except TransportError as error:
            found[f"nodes/{name}/no-logs"] = f"{error}\n"
    return found


def _controller() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "raytools": importlib.metadata.version("raytools"),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}\n"


def _packed(parts: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in parts.items():
            data = text.encode()
            entry = tarfile.TarInfo(f"raytools-doctor/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
