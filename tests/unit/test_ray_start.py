"""A worker's `ray start` begins beside its head's and goes on once the head answers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raytools.node import ray_start
from raytools.node.ray_process import patient_pause_s

CHECKOUT = Path(__file__).parents[2]

TELL = """
import json, sys
json.dump({"argv": sys.argv, "path": sys.path[0], "name": __name__}, open(sys.argv[1], "w"))
sys.exit(7)
"""


@pytest.fixture
def head() -> Iterator[socket.socket]:
    """A port of this machine that refuses until it listens."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound


def address_of(head: socket.socket) -> str:
    return f"127.0.0.1:{head.getsockname()[1]}"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "ray"
    path.write_text(TELL)
    return path


def started(head: socket.socket, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raytools.node", "ray-start", "--after", address_of(head), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_the_program_takes_the_process_over_once_the_head_listens(
    head: socket.socket, program: Path, tmp_path: Path
) -> None:
    answer = tmp_path / "answer.json"
    with started(head, str(program), str(answer), "--block") as process:
        time.sleep(0.5)
        assert not answer.exists()
        head.listen()
        assert process.wait(20) == 7
        assert process.stderr is not None
        assert f"waiting for the head at {address_of(head)}" in process.stderr.read()
    told = json.loads(answer.read_text())
    assert told == {
        "argv": [str(program), str(answer), "--block"], "path": str(tmp_path), "name": "__main__",
    }  # fmt: skip


def test_a_head_that_answers_later_is_waited_for(head: socket.socket) -> None:
    threading.Timer(0.3, head.listen).start()
    began = time.monotonic()
    ray_start.await_head(address_of(head), limit_s=20)
    assert 0.2 < time.monotonic() - began < 10


def test_a_head_that_never_answers_is_named_with_where_to_look(
    head: socket.socket, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_start, "HEAD_LIMIT_S", 0.2)
    assert ray_start.main(["--after", address_of(head), str(program), str(tmp_path / "answer.json")]) == 1
    said = capsys.readouterr().err
    assert f"the head's GCS at {address_of(head)} did not answer within" in said
    assert "Look at the head" in said
    assert not (tmp_path / "answer.json").exists()


FAKE_SERVICES = """
import json
def start_ray_process(command, process_type, fate_share=False):
    print(json.dumps([process_type, command, fate_share]))
"""
FAKE_RAY = """
import ray._private.services as services
services.start_ray_process(["raylet", "--node_id=1"], "raylet", fate_share=True)
services.start_ray_process(["raylet", "--dashboard_agent_listen_port=7"], "raylet")
services.start_ray_process(["gcs"], "gcs_server")
"""


def test_the_raylet_alone_is_told_the_port_that_ray_start_keeps_to_itself(tmp_path: Path) -> None:
    package = tmp_path / "ray" / "_private"
    package.mkdir(parents=True)
    (package / "services.py").write_text(FAKE_SERVICES)
    (tmp_path / "program").write_text(FAKE_RAY)
    command = [sys.executable, "-m", "raytools.node", "ray-start", str(tmp_path / "program"), "start"]
    done = subprocess.run(
        [*command, "--head", "--dashboard-agent-listen-port=10105"],
        env={"PYTHONPATH": f"{tmp_path}:{CHECKOUT}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        ["raylet", ["raylet", "--node_id=1", "--dashboard_agent_listen_port=10105"], True],
        ["raylet", ["raylet", "--dashboard_agent_listen_port=7"], False],
        ["gcs_server", ["gcs"], False],
    ]


def test_a_ray_that_starts_its_raylet_in_another_way_is_started_and_told_of(tmp_path: Path) -> None:
    package = tmp_path / "ray" / "_private"
    package.mkdir(parents=True)
    (package / "services.py").write_text("")
    (tmp_path / "program").write_text("print('started')")
    done = subprocess.run(
        [sys.executable, "-m", "raytools.node", "ray-start", str(tmp_path / "program"), "start"],
        env={"PYTHONPATH": f"{tmp_path}:{CHECKOUT}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "started\n"
    assert "it gives its agents 15 s" in done.stderr


def test_what_is_waited_for_long_is_looked_at_less_often() -> None:
    assert [patient_pause_s(waited_s) for waited_s in (0, 5, 25, 1000)] == [0.1, 0.1, 0.5, 1.0]
