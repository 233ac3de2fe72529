"""The ends of a node's logs, for a bug report: what is there, and without secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytools.node import logs

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node's root with a log, and Ray's temp dir with another."""
    session = tmp_path / "temp" / "session_latest" / "logs"
    session.mkdir(parents=True)
    (session / "raylet.out").write_text(f"started with token {TOKEN}\nit ended\n")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "ray.log").write_text("Ray is up\n")
    (tmp_path / "token").write_text(TOKEN + "\n")
    node = {
        "cluster": "c", "temp_dir": str(tmp_path / "temp"), "ray": {"token_path": str(tmp_path / "token")}
    }  # fmt: skip
    (tmp_path / "node.json").write_text(json.dumps(node))
    return tmp_path


def test_what_is_there_is_told_and_the_clusters_token_is_not(root: Path) -> None:
    found = logs.collect(root)
    assert found["root/ray.log"] == "Ray is up\n"
    assert found["session/raylet.out"] == "started with token [removed]\nit ended\n"
    assert "root/ray.log.1" not in found
    assert TOKEN not in json.dumps(found)


def test_a_node_that_was_never_provisioned_has_no_logs(tmp_path: Path) -> None:
    assert logs.collect(tmp_path) == {}


def test_of_a_long_log_the_end_is_told_from_the_beginning_of_a_line_on(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(20000)]
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    told = logs.tail(tmp_path / "log").splitlines()
    assert told == lines[-len(told) :]
    assert 1000 < len(told) < 20000


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("RAY_AUTH_TOKEN=abc123 x", "RAY_AUTH_TOKEN=[removed] x"),
        ('{"password": "hunter2", "user": "me"}', '{"password": "[removed]", "user": "me"}'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [removed]"),
        ("http_proxy=http://me:hunter2@proxy:3128", "http_proxy=http://me:[removed]@proxy:3128"),
        ("AWS_SECRET: xyz", "AWS_SECRET: [removed]"),
        ("the tokenizer is fine: 5", "the tokenizer is fine: 5"),
    ],
)
def test_what_looks_like_a_secret_is_masked(line: str, told: str) -> None:
    assert logs.masked(line) == told


@given(st.text(alphabet="abc \n=:/@", max_size=60), st.text(alphabet="xyz0", min_size=8, max_size=20))
def test_a_secret_that_is_known_is_told_nowhere(text: str, secret: str) -> None:
    assert secret not in logs.masked(f"{text}{secret}{text}", secret)
