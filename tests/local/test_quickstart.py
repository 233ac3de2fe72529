"""`make quickstart` as a freshly made user: everything from a clone, nothing enforceable, and it says so."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.long,  # minutes; CI runs it as root, and the lab installs three hosts without root
    pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a user"),
    pytest.mark.skipif(shutil.which("useradd") is None, reason="needs useradd (package passwd)"),
    pytest.mark.skipif(
        not Path("/usr/bin/python3").exists(), reason="needs the system's Python (package python3)"
    ),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def user() -> Iterator[str]:
    """A user that did not exist before and does not afterwards."""
    name = f"rt-{secrets.token_hex(3)}"
    uid = 40000 + secrets.randbelow(20000)  # not one that a container on this machine also uses, as tests/lab
    subprocess.run(["useradd", f"--uid={uid}", "--create-home", "--shell", "/bin/bash", name], check=True)
    yield name
    subprocess.run(["userdel", "--remove", name], check=True, stderr=subprocess.DEVNULL)


def as_user(user: str, command: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs a shell command as in a fresh login of that user."""
    channels = "export RAYTOOLS_CHANNELS=local; "
    return subprocess.run(
        ["su", "-", user, "-c", channels + command],
        capture_output=True, text=True, check=False, timeout=timeout_s, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clone(user: str) -> Iterator[Path]:
    """A clone of this checkout in the user's home, on ports that leave the machine's other clusters alone."""
    home = Path(pwd.getpwnam(user).pw_dir)
    directory = home / "raytools"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(directory)], check=True)
    _copy_uncommitted(directory)
    configuration = directory / "cluster.yaml"
    content = yaml.safe_load(configuration.read_text())
    ports = content["ray"]["ports"]
    shifted = {name: port + 2000 for name, port in ports.items() if name != "workers"}
    content["ray"]["ports"] = {**shifted, "workers": [22000, 22999]}
    configuration.write_text(yaml.safe_dump(content))
    if (wheels := CHECKOUT / ".raytools" / "cache" / "wheels").is_dir():  # downloads are not the subject
        shutil.copytree(wheels, directory / ".raytools" / "cache" / "wheels")
    subprocess.run(["chown", "-R", f"{user}:", str(directory)], check=True)
    yield directory
    stopped = as_user(user, "cd raytools && make stop")
    left = processes_of(user)
    subprocess.run(["pkill", "-KILL", "-u", user], check=False)  # a user that only this test has
    if (directory / ".raytools" / "ray").is_symlink():
        shutil.rmtree((directory / ".raytools" / "ray").readlink().parent)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert left == [], "processes outlived `make stop`"


def processes_of(user: str) -> list[str]:
    """Living processes; what is dead and not collected yet is PID 1's business."""
    found = psutil.process_iter(["username", "status", "cmdline"])
    return [
        " ".join(process.info["cmdline"] or [str(process.pid)])
        for process in found
        if process.info["username"] == user and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def _copy_uncommitted(directory: Path) -> None:
    """What is tested is the tree as it stands here, committed or not."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        source, target = CHECKOUT / name, directory / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def test_a_plain_user_gets_a_cluster_and_is_told_what_is_not_enforced(user: str, clone: Path) -> None:
    first = as_user(user, "cd raytools && make quickstart")
    assert first.returncode == 0, first.stdout[-6000:] + first.stderr[-2000:]
    summary = next(line for line in first.stdout.splitlines() if line.startswith("Not enforced for user"))
    assert "cpu, memory" in summary
    assert f"grant --user {user}" in summary

    (written,) = (clone / ".raytools" / "results" / "autogluon").glob("*/smoke.json")
    document = json.loads(written.read_text())
    assert document["verdict"] == "pass"
    assert any("affinity" in reason for reason in document["reasons"])
    assert document["runs"][0]["record"]["enforced"]["cpu"] == "affinity"


def test_strict_is_refused_for_a_plain_user_with_the_command_that_allows_it(user: str, clone: Path) -> None:
    strict = as_user(user, "cd raytools && .venv/bin/raytools run -- true")
    assert strict.returncode == 125
    assert f"grant --user {user}" in strict.stderr
