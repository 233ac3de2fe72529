"""The survey of all hosts: who answers, who did before, who never has.

Hosts and answers are invented; the last test asks this machine for real.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytools import survey as surveys
from raytools.cli import main
from raytools.errors import RaytoolsError
from raytools.inventory import Host, parse_inventory
from raytools.project import Project, find_project
from raytools.survey import Survey, survey
from raytools.transport import Answer, NodeCommand
from tests.unit.invented_state import state

NAMES = ("n1", "n2", "n3")
DOWN = Answer("", "", None, "192.0.2.2: Connection refused")


class Hosts:
    """A project with hosts n1 (head), n2 and n3; `down` ones do not answer, `answers` are what others say."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.down: set[str] = set()
        self.answers: dict[str, dict[str, Any]] = {
            name: state(number) for number, name in enumerate(NAMES, 1)
        }
        self.hostvars: dict[str, dict[str, Any]] = {
            name: {"ansible_host": f"192.0.2.{number}", "ansible_become": True}
            for number, name in enumerate(NAMES, 1)
        }
        self.asked: dict[str, dict[str, Any]] = {}
        (directory / "inventory").mkdir()
        (directory / "inventory" / "hosts.yml").touch()
        self.configure()
        monkeypatch.setattr(surveys, "call", self._call)
        monkeypatch.setattr(surveys, "load_inventory", lambda path: parse_inventory(path, self._listing()))

    def configure(self, **config: Any) -> None:
        whole = {"cluster": "t", "environment": {"prefix": "/opt/env"}} | config
        (self.directory / "cluster.yaml").write_text(yaml.safe_dump(whole))

    @property
    def project(self) -> Project:
        return find_project(self.directory / "cluster.yaml", self.directory / "inventory" / "hosts.yml")

    def survey(self) -> Survey:
        return survey(self.project)

    def slot_bytes(self) -> set[int]:
        return {slot.memory_bytes for plan in self.survey().plans.values() for slot in plan.slots}

    def _listing(self) -> dict[str, Any]:
        return {
            "_meta": {"hostvars": self.hostvars},
            "head": {"hosts": ["n1"]}, "workers": {"hosts": ["n2", "n3"]}, "all": {"hosts": [*self.hostvars]},
        }  # fmt: skip

    def _call(
        self, hosts: Sequence[Host], commands: Mapping[str, NodeCommand], timeout_s: float, **_: Any
    ) -> dict[str, Answer]:
        self.asked = {host.name: json.loads(commands[host.name].stdin) for host in hosts}
        answered_s = surveys.time.time()
        return {
            host.name: DOWN
            if host.name in self.down
            else Answer(json.dumps(self.answers[host.name] | {"clock_s": answered_s}), "", 0)
            for host in hosts
        }


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return Hosts(tmp_path, monkeypatch)


def small(answer: dict[str, Any]) -> dict[str, Any]:
    """The same host with a quarter of the memory: it sets the measure of equal slots."""
    answer["facts"]["memory"] = {"usable_bytes": 4 * 2**30, "shm_total_bytes": 2 * 2**30}
    return answer


# ------------------------------------------------------------------------------------------------- answers


def test_all_hosts_that_answer_are_planned_and_judged(hosts: Hosts) -> None:
    found = hosts.survey()
    assert tuple(found.plans) == tuple(found.judged) == tuple(found.states) == NAMES
    assert (found.errors, found.problem, found.warnings) == ({}, None, ())
    assert found.possible
    assert found.to_json()["verdict"] == "ok"


def test_every_host_is_asked_once_for_what_concerns_it(hosts: Hosts) -> None:
    hosts.hostvars["n2"]["ansible_become"] = False
    hosts.survey()
    assert {asked["cluster"] for asked in hosts.asked.values()} == {"t"}
    assert [asked["user"] for asked in hosts.asked.values()] == ["ray", None, "ray"]
    assert {"gcs", "dashboard", "node_manager"} <= set(hosts.asked["n1"]["ports"])
    assert not {"gcs", "dashboard", "workers"} & set(hosts.asked["n2"]["ports"])


def test_a_dashboard_that_is_off_asks_for_no_port(hosts: Hosts) -> None:
    hosts.configure(ray={"dashboard": {"enabled": False}})
    hosts.survey()
    assert not {"dashboard", "dashboard_metrics"} & set(hosts.asked["n1"]["ports"])
    assert "gcs" in hosts.asked["n1"]["ports"]


def test_a_host_that_is_down_is_named_with_its_reason_and_the_others_go_on(hosts: Hosts) -> None:
    hosts.survey()
    hosts.down = {"n2"}
    found = hosts.survey()
    assert found.errors == {"n2": "192.0.2.2: Connection refused"}
    assert found.possible
    shown = found.to_json()
    assert shown["verdict"] == "error"
    assert (shown["nodes"]["n2"]["error"], shown["nodes"]["n2"]["state"]) == (found.errors["n2"], None)
    assert shown["nodes"]["n3"]["error"] is None


def test_what_is_no_answer_is_an_error_of_that_host_alone(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = surveys.call
    broken = {"n2": Answer("Welcome!", "", 0), "n3": Answer("", "Traceback\nKeyError: 'root'", 1)}
    monkeypatch.setattr(surveys, "call", lambda *args, **more: asked(*args, **more) | broken)  # type: ignore[operator]
    found = hosts.survey()
    assert list(found.states) == ["n1"]
    assert "is not JSON" in found.errors["n2"]
    assert found.errors["n3"].endswith("exit code 1: KeyError: 'root'")


# ------------------------------------------------------------------------------------------- who was there


def test_equal_slots_do_not_change_because_a_machine_is_down(hosts: Hosts) -> None:
    small(hosts.answers["n2"])
    before = hosts.slot_bytes()
    hosts.down = {"n2"}
    assert hosts.slot_bytes() == before
    (note,) = hosts.survey().warnings
    assert note.startswith("n2: does not answer; planned by its facts of ")


def test_a_host_that_never_answered_is_left_out_and_this_is_said(hosts: Hosts) -> None:
    hosts.down = {"n2"}
    found = hosts.survey()
    assert list(found.plans) == ["n1", "n3"]
    assert found.warnings == ("n2: has never answered at 192.0.2.2; the cluster is planned without it",)
    assert found.to_json()["nodes"]["n2"]["plan"] is None


@pytest.mark.parametrize("moved", [{"ansible_host": "192.0.2.77"}, {"ansible_port": 2222}])
def test_a_host_at_another_address_may_be_another_machine(hosts: Hosts, moved: dict[str, Any]) -> None:
    hosts.survey()
    hosts.down = {"n2"}
    hosts.hostvars["n2"] |= moved
    found = hosts.survey()
    assert list(found.plans) == ["n1", "n3"]
    assert "n2: has never answered at " in found.warnings[0]


def test_a_host_that_comes_back_changed_is_planned_by_what_it_is_now(hosts: Hosts) -> None:
    before = hosts.slot_bytes()
    small(hosts.answers["n2"])
    after = hosts.slot_bytes()
    assert after != before
    hosts.down = {"n2"}
    assert hosts.slot_bytes() == after


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"address": "192.0.2.2"}', '{"address": "192.0.2.2", "facts": {"cpu": {}}}']
)
def test_damaged_memory_of_a_host_is_none(hosts: Hosts, content: str) -> None:
    hosts.survey()
    (hosts.project.state_dir / "facts" / "n2.json").write_text(content)
    hosts.down = {"n2"}
    assert list(hosts.survey().plans) == ["n1", "n3"]


def test_facts_that_cannot_be_kept_end_the_survey_with_the_place(hosts: Hosts) -> None:
    hosts.project.state_dir.mkdir()
    (hosts.project.state_dir / "facts").touch()
    with pytest.raises(RaytoolsError, match=r"the facts of n1 cannot be kept in .*/facts"):
        hosts.survey()


# ------------------------------------------------------------------------------------------------ the head


def test_without_the_head_nothing_is_possible_though_it_is_remembered(hosts: Hosts) -> None:
    hosts.survey()
    hosts.down = {"n1"}
    found = hosts.survey()
    assert list(found.plans) == list(NAMES)
    assert not found.head_answers
    assert not found.possible


def test_a_head_that_never_answered_leaves_no_plan_and_the_workers_are_judged(hosts: Hosts) -> None:
    hosts.down = {"n1"}
    hosts.answers["n2"]["busy_ports"] = ["port 10101 (node_manager) is held by x"]
    found = hosts.survey()
    assert found.plans == {}
    assert not found.possible
    assert len(found.judged["n2"].problems) == 1


def test_what_forbids_one_host_forbids_the_run(hosts: Hosts) -> None:
    hosts.answers["n3"]["busy_ports"] = ["port 10101 (node_manager) is held by x"]
    found = hosts.survey()
    assert not found.possible
    assert [bool(found.judged[name].problems) for name in NAMES] == [False, False, True]


def test_what_does_not_fit_a_machine_is_the_problem_and_all_are_judged(hosts: Hosts) -> None:
    hosts.configure(nodes={"cpus": 64})
    found = hosts.survey()
    assert found.problem is not None
    assert "n1: nodes.cpus declares 64 CPUs" in found.problem
    assert "n3: nodes.cpus declares 64 CPUs" in found.problem
    assert set(found.judged) == set(NAMES)
    assert not found.possible


def test_a_host_of_neither_group_is_named(hosts: Hosts) -> None:
    hosts.hostvars["spare"] = {}
    assert hosts.survey().warnings == ("spare: this host is in neither head nor workers and left out",)
    assert "spare" not in hosts.asked


# ------------------------------------------------------------------------------------------------- command


def preflight(hosts: Hosts, *options: str) -> int:
    return main(
        ["preflight", "-c", str(hosts.project.config_path), "-i", str(hosts.project.inventory_path), *options]
    )


def test_the_command_shows_every_host_and_ends_with_0(
    hosts: Hosts, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts.answers["n2"]["other_rays"] = ["another Ray (pid 7, temp dir /tmp/ray)"]
    assert preflight(hosts) == 0
    said = capsys.readouterr().out
    assert "n1 (head): possible\n" in said
    assert "n2 (worker): possible\n  note: there is another Ray (pid 7" in said


def test_the_command_names_what_forbids_and_ends_with_1(
    hosts: Hosts, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts.down = {"n2"}
    hosts.answers["n3"]["busy_ports"] = ["port 10101 (node_manager) is held by x"]
    assert preflight(hosts) == 1
    said = capsys.readouterr().out
    assert "n2 (worker): not possible\n  error: 192.0.2.2: Connection refused\n" in said
    assert "n3 (worker): not possible\n  error: port 10101 (node_manager) is held by x. End it" in said


def test_the_command_ends_with_1_where_no_plan_can_be_made(
    hosts: Hosts, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts.configure(nodes={"cpus": 64})
    assert preflight(hosts) == 1
    assert "\nerror: n1: nodes.cpus declares 64 CPUs" in capsys.readouterr().out


def test_json_is_one_object_with_plan_and_state_of_each_host(
    hosts: Hosts, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preflight(hosts, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "raytools.preflight/1"
    assert list(shown["nodes"]) == list(NAMES)
    assert shown["nodes"]["n2"]["plan"]["role"] == "worker"
    assert shown["nodes"]["n2"]["state"]["facts"]["host"]["hostname"] == "host2"
    assert Path(shown["toolkit"]["path"]).name == f"raytools-{shown['toolkit']['digest']}.zip"


def test_a_wrong_key_ends_with_2_before_any_host_is_asked(
    hosts: Hosts, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts.configure(slot={})
    assert preflight(hosts) == 2
    assert "slot" in capsys.readouterr().err
    assert hosts.asked == {}


def test_this_machine_is_asked_for_real(tmp_path: Path) -> None:
    """Ansible reads the inventory, the probe looks at this machine, and nothing is made there."""
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory" / "hosts.yml").write_text(
        "head: {hosts: {localhost: {ansible_connection: local, raytools_root: root}}}\nworkers: {hosts: {}}\n"
    )
    (tmp_path / "cluster.yaml").write_text(
        yaml.safe_dump({"cluster": "t", "environment": {"prefix": "/opt/env"}})
    )
    found = survey(find_project(tmp_path / "cluster.yaml", tmp_path / "inventory" / "hosts.yml"))
    assert found.errors == {}
    assert found.head_answers
    assert found.plans["localhost"].root == str(tmp_path / "root")
    assert found.states["localhost"]["root_owner"] is None
    assert not (tmp_path / "root").exists()
