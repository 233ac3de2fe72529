"""The template of a workload (examples/workload-template): installed by pip and run in a real slot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .limited_runs import why_no_limits
from .planned_node import CHECKOUT, built_prefix
from .smoke_cluster import started_cluster

_why_not = why_no_limits()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(_why_not), reason=_why_not)]

TEMPLATE = CHECKOUT / "examples" / "workload-template"


def test_the_template_installs_and_runs_in_a_slot(tmp_path: Path) -> None:
    prefix, site = environment_with(TEMPLATE, tmp_path)
    with started_cluster(prefix=prefix) as cluster:
        done = subprocess.run(
            cluster.command("smoke", "--workload", "primes", "--set", "limit=5000", "--json"),
            cwd=cluster.directory, env={**os.environ, "PYTHONPATH": f"{site}:{CHECKOUT}"},  # the controller's
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert (document["workload"], document["verdict"]) == ("primes", "pass")
    [run] = document["runs"]
    assert (run["metrics"]["primes"], run["record"]["outcome"]) == (669, "ok")
    assert run["record"]["limits"]["time_s"] == 600


def environment_with(package: Path, directory: Path) -> tuple[Path, Path]:
    """The built environment with one package more: its prefix, and where that package lies."""
    source, prefix = directory / "source", directory / "environment"
    shutil.copytree(package, source)  # building leaves files beside pyproject.toml
    python, pip = str(prefix / "bin" / "python"), [sys.executable, "-m", "pip", "-q", "--python"]
    made = ["-m", "venv", "--system-site-packages", "--without-pip", str(prefix)]
    subprocess.run([str(built_prefix() / "bin" / "python"), *made], check=True)
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, python, "install", *offline, str(source)], check=True)
    ray = prefix / "bin" / "ray"
    ray.write_text(f"#!{python}\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n")
    ray.chmod(0o755)
    [site] = prefix.glob("lib/python*/site-packages")
    return prefix, site
