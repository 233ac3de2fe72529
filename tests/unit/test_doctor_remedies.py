"""What --fix would do about which finding, and that it asks first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raytools.cli import doctor as command
from raytools.doctor.remedies import remedies
from raytools.errors import RaytoolsError
from raytools.project import find_project
from tests.unit.test_doctor_checks import Sample, like_the_first

LEFT = [
    {"pid": 41, "user": "ray", "command": "ray::f", "temp_dir": None, "ours": True, "name": "ray::f"},
    {"pid": 42, "user": "me", "command": "ray::g", "temp_dir": None, "ours": False, "name": "ray::g"},
]


def with_dead_worker(sample: Sample, role: str = "worker") -> Sample:
    node = replace(like_the_first(sample, 2), role=role)
    assert node.inspection is not None
    node.inspection["rays"]["ours"] = []  # type: ignore[index]
    sample.ray["nodes"][1]["state"] = "DEAD"  # type: ignore[index]
    sample.more_nodes = [node]
    return sample


def test_of_what_is_left_only_this_clusters_is_ended() -> None:
    sample = Sample()
    sample.inspection["rays"]["leftovers"] = LEFT
    (remedy,) = remedies(sample.report())
    assert (remedy.node, remedy.kind) == ("n1", "leftovers")
    assert remedy.what == "end what dead Rays of this cluster have left: pid 41"
    sample.inspection["rays"]["leftovers"] = LEFT[1:]
    assert remedies(sample.report()) == []


def test_a_dead_worker_is_restarted_after_what_it_has_left_is_ended() -> None:
    sample = with_dead_worker(Sample())
    sample.more_nodes[0].inspection["rays"]["leftovers"] = LEFT  # type: ignore[index]
    assert [(one.node, one.kind) for one in remedies(sample.report())] == [
        ("n2", "leftovers"),
        ("n2", "unit"),
    ]


def test_a_dead_head_and_a_node_without_systemd_are_left_to_people() -> None:
    assert remedies(with_dead_worker(Sample(), role="head").report()) == []
    sample = with_dead_worker(Sample())
    sample.more_nodes[0].inspection["unit"] = None  # type: ignore[index]
    assert remedies(sample.report()) == []


def test_a_killed_run_is_swept_unless_it_is_waived() -> None:
    sample = Sample()
    sample.inspection["locks"]["stale"] = [{"text": "run r1", "path": "/run/lock/raytools/held/r1.json"}]
    assert [one.kind for one in remedies(sample.report())] == ["runs"]
    sample.config["doctor"] = {"waive": [{"code": "RT803", "reason": "later"}]}
    assert remedies(sample.report()) == []


def test_where_nobody_can_answer_nothing_is_done_without_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = Sample()
    sample.inspection["rays"]["leftovers"] = LEFT
    with pytest.raises(RaytoolsError, match="--yes"):
        command._mend(find_project(), sample.report(), yes=False)
    assert capsys.readouterr().err == "n1: end what dead Rays of this cluster have left: pid 41\n"
