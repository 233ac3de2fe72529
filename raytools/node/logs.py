"""The ends of the logs that tell why something is wrong: `python -m raytools.node logs --root DIR`.

For a bug report, so without secrets: the cluster's token, and what looks like a password, is masked here,
before it leaves the node. Reads only; standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from raytools.node import systemd_unit
from raytools.node.facts import read_node_json

_TAIL_BYTES = 64 << 10
_JOURNAL_LINES = "300"
_JOURNAL_WAIT_S = 20.0
_OURS = ("ray.log", "ray.log.1")
_OF_SESSION = (
    "gcs_server.out", "gcs_server.err", "raylet.out", "raylet.err", "dashboard_agent.log",
    "runtime_env_agent.log", "monitor.log", "dashboard.log",
)  # fmt: skip
_MASK = "[removed]"
_SECRETS = (
    re.compile(
        r"(?i)((?:token|password|passwd|secret|credential|api_?key)s?\"?'?\s*[=:]\s*\"?'?)[^\s\"',;]+"
    ),
    re.compile(r"(?i)(authorization:\s*\w+\s+)\S+"),
    re.compile(r"(\b\w+://[^/\s:@]+:)[^@\s/]+(?=@)"),
)


def collect(root: Path) -> dict[str, str]:
    """Name of the log -> its end, masked; what is not there or may not be read is left out, with the reason.

    Args:
        root: of this node.
    """
    node = read_node_json(str(root / "node.json"))
    paths = {f"root/{name}": root / "logs" / name for name in _OURS}
    if node:
        session = Path(node["temp_dir"], "session_latest", "logs")
        paths |= {f"session/{name}": session / name for name in _OF_SESSION}
    texts: dict[str, str] = {}
    for name, path in paths.items():
        try:
            texts[name] = tail(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            texts[name] = f"{path} cannot be read: {error.strerror}\n"
    if node and Path("/run/systemd/system").is_dir():
        texts["journal"] = _journal(systemd_unit.of_ray(node["cluster"]))
    token = _token(node["ray"]["token_path"]) if node else None
    return {name: masked(text, token) for name, text in texts.items()}


def tail(path: Path) -> str:
    """The last 64 KiB, from the beginning of a line on.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        data = file.read(_TAIL_BYTES)
    if size > _TAIL_BYTES:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")


def masked(text: str, *secrets: str | None) -> str:
    """The text without these secrets, and without what looks like one."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, _MASK)
    for pattern in _SECRETS:
        text = pattern.sub(rf"\g<1>{_MASK}", text)
    return text


def _token(path: str | None) -> str | None:
    try:
        return Path(path).read_text().strip() if path else None
    except OSError:
        return None  # who may not read it finds it in no file that he may read


def _journal(unit: str) -> str:
    command = [
        "journalctl",
        "--no-pager",
        "--output=short-iso",
        f"--lines={_JOURNAL_LINES}",
        f"--unit={unit}",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_JOURNAL_WAIT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"journalctl does not answer ({error})\n"
    return done.stdout or done.stderr


def main(argv: list[str]) -> int:
    """JSON on standard output: name -> text."""
    parser = argparse.ArgumentParser(prog="python -m raytools.node logs", description=__doc__)
    parser.add_argument("--root", required=True, type=Path)
    json.dump(collect(parser.parse_args(argv).root), sys.stdout)
    return 0
