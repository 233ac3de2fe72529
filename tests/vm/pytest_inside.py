"""Tests of this checkout that run inside a machine: they look at its kernel, so they have to be there.

The machine needs its own Python alone: pytest and what it needs, all of it pure Python, travel along.
"""

from __future__ import annotations

import importlib.metadata
import io
import shlex
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.lab.base import CHECKOUT
from tests.lab.machines.machine import Machine

_DIRECTORY = "/opt/checkout"
_TREES = ("raytools", "tests", "pyproject.toml")
_PYTEST = ("pytest", "pytest-timeout", "pluggy", "iniconfig", "packaging", "pygments")
_PATIENCE = 6  # an emulated processor is that much slower; what waits in vain, waits longer


@dataclass(frozen=True)
class Case:
    """One test, and how it ended there."""

    name: str
    outcome: str  # passed | failed | skipped
    said: str

    def __str__(self) -> str:
        return f"{self.outcome:<8} {self.name}" + (f"\n{self.said}" if self.outcome != "passed" else "")


def run_inside(machine: Machine, *arguments: str, wait_s: float) -> list[Case]:
    """Runs tests of the checkout on a machine, as root.

    Args:
        machine: which one.
        arguments: of pytest: files, and which of their tests.
        wait_s: for all of them together.

    Returns:
        Every test that was collected.
    """
    machine.run(f"rm -rf {_DIRECTORY}; mkdir {_DIRECTORY}")
    machine.run(f"tar --extract --gzip --directory={_DIRECTORY}", data=_packed())
    pytest = [
        "env", f"PYTHONPATH={_DIRECTORY}/site-packages", "PYTHONDONTWRITEBYTECODE=1",
        f"RAYTOOLS_TEST_PATIENCE={_PATIENCE}",
        "python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=300", "--junitxml=report.xml",
        *arguments,
    ]  # fmt: skip
    done = machine.run(f"cd {_DIRECTORY} && {shlex.join(pytest)}", wait_s=wait_s, check=False)
    report = machine.run(f"cat {_DIRECTORY}/report.xml; rm -rf {_DIRECTORY}", check=False).stdout
    assert report, done.stdout + done.stderr
    return list(_cases(report))


def _packed() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name in _tracked():
            archive.add(CHECKOUT / name, name)
        for name in _PYTEST:
            found = importlib.metadata.distribution(name)
            for file in found.files or ():
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    archive.add(Path(str(found.locate_file(file))), f"site-packages/{file}")
    return buffer.getvalue()


def _tracked() -> list[str]:
    """The files of the trees as they stand here, without what is built beside them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *_TREES],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.splitlines() if (CHECKOUT / name).is_file()]


def _cases(report: str) -> Iterator[Case]:
    for case in ElementTree.fromstring(report).iter("testcase"):  # our pytest wrote it there
        ends: Sequence[tuple[str, str]] = [
            (outcome, (end.get("message") or "") + "\n" + (end.text or "")[-4000:])
            for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped"))
            for end in case.iter(tag)
        ]
        outcome, said = ends[0] if ends else ("passed", "")
        yield Case(str(case.get("name")), outcome, said)
