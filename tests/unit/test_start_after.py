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

from raytools.node import start_after

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
    command = [sys.executable, "-m", "raytools.node", "start-after", address_of(head), *arguments]
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
    start_after.await_head(address_of(head), limit_s=20)
    assert 0.2 < time.monotonic() - began < 10


def test_a_head_that_never_answers_is_named_with_where_to_look(
    head: socket.socket, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(start_after, "HEAD_LIMIT_S", 0.2)
    assert start_after.main([address_of(head), str(program), str(tmp_path / "answer.json")]) == 1
    said = capsys.readouterr().err
    assert f"the head's GCS at {address_of(head)} did not answer within" in said
    assert "Look at the head" in said
    assert not (tmp_path / "answer.json").exists()
