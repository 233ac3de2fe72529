"""The head waits for the declared nodes. What Ray says is invented; a real one says it in tests/lab."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raytools.errors import RaytoolsError
from raytools.node import members, ray_view

NODE = {"ray": {"gcs_address": "192.0.2.1:6379"}}
EXPECTED = {"n1": "192.0.2.1", "n2": "192.0.2.2"}


def nodes(**states: str) -> list[dict[str, Any]]:
    return [{"address": EXPECTED[name], "state": state} for name, state in states.items()]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the GCS answer these lists of nodes, one after the other and the last for ever."""

    @contextlib.contextmanager
    def answering(address: str) -> Iterator[None]:
        assert address == "192.0.2.1:6379"
        yield

    def set_answers(*answers: list[dict[str, Any]]) -> None:
        left = list(answers)
        monkeypatch.setattr(ray_view, "nodes_of", lambda _: left.pop(0) if len(left) > 1 else left[0])

    monkeypatch.setattr(ray_view, "connect", lambda node: object())
    monkeypatch.setattr(ray_view, "answering", answering)
    monkeypatch.setattr(members, "_PAUSE_S", 0.0)
    return set_answers


def test_nodes_that_join_one_by_one_are_waited_for(say: Any) -> None:
    say([], nodes(n1="ALIVE"), nodes(n1="ALIVE", n2="DEAD"), nodes(n1="ALIVE", n2="ALIVE"))
    members.wait(NODE, EXPECTED, 10)


def test_a_node_that_died_and_came_back_is_there(say: Any) -> None:
    """Ray remembers the dead of this session beside the living one of the same address."""
    say([*nodes(n2="DEAD"), *nodes(n1="ALIVE", n2="ALIVE"), *nodes(n2="DEAD")])
    members.wait(NODE, EXPECTED, 0)


def test_the_nodes_that_do_not_join_are_named(say: Any) -> None:
    say(nodes(n1="ALIVE", n2="DEAD"))
    with pytest.raises(RaytoolsError) as error:
        members.wait(NODE, EXPECTED, 0.01)
    said = str(error.value)
    assert said.startswith("n2 (192.0.2.2) did not join the cluster within 0 s, expected 2 nodes alive")
    assert "Look at logs/ray.log below the root there" in said


def test_the_command_ends_with_0_or_with_the_names(
    say: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.json").write_text(json.dumps(NODE))
    command = ["--node-json", str(tmp_path / "node.json"), "--timeout", "0", "n1=192.0.2.1", "n2=192.0.2.2"]
    say(nodes(n1="ALIVE", n2="ALIVE"))
    assert members.main(command) == 0
    say(nodes(n1="ALIVE"))
    assert members.main(command) == 1
    assert capsys.readouterr().err.startswith("n2 (192.0.2.2) did not join")


def test_without_a_plan_there_is_nothing_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert members.main(["--node-json", str(tmp_path / "node.json"), "n1=192.0.2.1"]) == 1
    assert "node.json is not a plan or may not be read" in capsys.readouterr().err
