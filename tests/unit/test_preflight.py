"""What forbids to provision a host, on invented answers: pass, fail, and what is not known."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytools import preflight
from raytools.config import ClusterConfig
from raytools.inventory import Host, parse_inventory
from raytools.plan import EnvironmentRef, NodePlan, make_plans
from raytools.preflight import Judged
from tests.unit.invented_state import GIB, NOON_S, state

ENVIRONMENT = EnvironmentRef("automl", "automl-0123456789ab", "0123456789ab" + "0" * 52)
ASKED_S = (NOON_S - 1, NOON_S + 1)


def hosts_of(count: int, hostvars: dict[str, Any] | None = None) -> tuple[Host, ...]:
    names = [f"n{number}" for number in range(1, count + 1)]
    variables = {"ansible_become": True, "raytools_root": "/opt/rt"} | (hostvars or {})
    listing = {
        "_meta": {"hostvars": dict.fromkeys(names, variables)},
        "head": {"hosts": names[:1]}, "workers": {"hosts": names[1:]},
    }  # fmt: skip
    return parse_inventory(Path("/p/inventory/hosts.yml"), listing).hosts


def judged(
    *states: dict[str, Any] | None,
    config: dict[str, Any] | None = None,
    hostvars: dict[str, Any] | None = None,
    environment: EnvironmentRef | None = ENVIRONMENT,
    plans: dict[str, NodePlan] | None = None,
    address: str | None = None,
) -> dict[str, Judged]:
    """Judges hosts n1, n2, … by their answers; None is one that has not answered."""
    hosts = hosts_of(len(states), hostvars)
    declared = ClusterConfig.model_validate(config or {})
    configs = dict.fromkeys([host.name for host in hosts], declared)
    answers = {host.name: one for host, one in zip(hosts, states, strict=True) if one is not None}
    if plans is None:
        known = [host for host in hosts if host.name in answers]
        facts = {name: _elsewhere(one["facts"], name) for name, one in answers.items()}
        plans = make_plans(configs, known, facts, environment) if known else {}
    if address is not None:
        plans = {name: dataclasses.replace(plan, address=address) for name, plan in plans.items()}
    return preflight.judge(hosts, configs, plans, answers, ASKED_S)


def _elsewhere(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """Planning refuses two hosts of one address; here that is not the subject."""
    network = {**facts["network"], "primary_address": f"192.0.2.{name.removeprefix('n')}"}
    return {**facts, "network": network}


def problems(*states: dict[str, Any] | None, **more: Any) -> tuple[str, ...]:
    """Of the first host."""
    return judged(*states, **more)["n1"].problems


def notes(answer: dict[str, Any], **more: Any) -> tuple[str, ...]:
    return judged(answer, **more)["n1"].notes


def test_a_host_without_fault_has_neither_problems_nor_notes() -> None:
    assert judged(state(1), state(2)) == {"n1": Judged((), ()), "n2": Judged((), ())}


def test_every_host_that_has_answered_is_judged_and_no_other() -> None:
    found = judged(state(1, busy_ports=["port 1"]), None, state(3, busy_ports=["port 3"]))
    assert list(found) == ["n1", "n3"]
    assert all(len(one.problems) == 1 for one in found.values())


def test_all_problems_of_a_host_are_named_at_once() -> None:
    found = problems(
        state(busy_ports=["port 6379 (gcs) is held by x", "port 8265 (dashboard) is held by y"],
              disk__tmp__available_bytes=0, clock_s=0.0)
    )  # fmt: skip
    assert len(found) == 4


# -------------------------------------------------------------------------------------------- the machine


def test_another_architecture_than_the_first_hosts_is_refused() -> None:
    found = judged(state(1), state(2, host__arch="aarch64"))
    assert found["n1"].problems == ()
    (problem,) = found["n2"].problems
    assert "its architecture is aarch64, that of n1 is x86_64" in problem


def test_where_the_head_is_down_the_first_that_answers_sets_the_architecture() -> None:
    found = judged(None, state(2, host__arch="aarch64"), state(3), plans={})
    assert found["n2"].problems == ()
    assert "that of n2 is aarch64" in found["n3"].problems[0]


def test_a_systemd_that_does_not_answer_is_a_problem() -> None:
    (problem,) = problems(state(unit={"problem": "systemctl does not answer (timed out)"}))
    assert problem.startswith("systemctl does not answer (timed out). ")


@pytest.mark.parametrize(
    ("user", "owner", "writable", "expected"),
    [
        ({"name": "root", "uid": 0}, "ada", True, None),
        ({"name": "ada", "uid": 1000}, "ada", True, None),
        ({"name": None, "uid": 4242}, "uid 4242", True, None),
        ({"name": "ada", "uid": 1000}, None, True, None),
        (
            {"name": "ada", "uid": 1000},
            "root",
            False,
            "/opt/rt belongs to root, and this connection is ada. ",
        ),
        ({"name": "ada", "uid": 1000}, None, False, "/opt/rt cannot be made by ada. "),
        (
            {"name": None, "uid": 4242},
            "ada",
            False,
            "/opt/rt belongs to ada, and this connection is uid 4242",
        ),
        ({"name": "root", "uid": 0}, "root", False, "/opt/rt cannot be written by root"),
    ],
)
def test_the_root_directory_has_to_be_ours(
    user: Any, owner: Any, writable: bool, expected: str | None
) -> None:
    found = problems(state(user=user, root_owner=owner, root_writable=writable))
    if expected is None:
        assert found == ()
    else:
        (problem,) = found
        assert problem.startswith(expected)
        assert "ansible_become: true" in problem


# --------------------------------------------------------------------------------------------------- room


def test_an_environment_needs_room_on_the_disk_of_the_root() -> None:
    (problem,) = problems(state(disk__root__available_bytes=GIB))
    assert problem.startswith("the disk of /opt/rt has 1 GiB free, expected at least 4 GiB. Make room")
    (problem,) = problems(state(disk__root__available_bytes=GIB), environment=None)
    assert "expected at least 4 GiB" in problem, "not locked yet, and so not installed"


def test_what_is_installed_or_existed_before_needs_no_room() -> None:
    full = {"disk__root__available_bytes": GIB, "disk__root__inodes_available": 10}
    assert problems(state(environments={ENVIRONMENT.id: {}}, **full)) == ()
    assert problems(state(**full), environment=EnvironmentRef("mine", "mine", prefix="/opt/mine")) == ()


def test_without_a_plan_nobody_knows_which_room_is_needed() -> None:
    assert problems(state(disk__root__available_bytes=GIB, disk__root__inodes_available=10), plans={}) == ()


def test_a_full_disk_is_refused_also_where_everything_is_installed() -> None:
    (problem,) = problems(state(environments={ENVIRONMENT.id: {}}, disk__root__available_bytes=0))
    assert "has 0 B free, expected at least 512 MiB" in problem


def test_too_few_inodes_are_counted() -> None:
    (problem,) = problems(state(disk__root__inodes_available=59_999))
    assert problem == "the disk of /opt/rt has 59999 inodes free, expected at least 60000. Remove files"


def test_a_full_tmp_is_refused() -> None:
    (problem,) = problems(state(disk__tmp__available_bytes=GIB // 4))
    assert problem.startswith("/tmp has 256 MiB free, expected at least 512 MiB for Ray's logs")


def test_room_that_could_not_be_measured_is_no_problem() -> None:
    unknown = {
        "disk__root__available_bytes": None,
        "disk__root__inodes_available": None,
        "disk__tmp__available_bytes": None,
    }
    assert problems(state(**unknown)) == ()


# -------------------------------------------------------------------------------------------------- clock


@settings(deadline=None)
@given(st.floats(min_value=-30, max_value=32))
def test_a_clock_within_the_time_of_asking_and_half_a_minute_is_right(after_s: float) -> None:
    assert problems(state(clock_s=ASKED_S[0] + after_s)) == ()


@settings(deadline=None)
@given(st.floats(min_value=0.5, max_value=1e9), st.sampled_from(["ahead of", "behind"]))
def test_a_wrong_clock_is_named_with_its_distance_and_its_way(beyond_s: float, way: str) -> None:
    clock_s = ASKED_S[1] + 30 + beyond_s if way == "ahead of" else ASKED_S[0] - 30 - beyond_s
    (problem,) = problems(state(clock_s=clock_s))
    assert f" s {way} the controller's, expected less than 30 s" in problem
    assert abs(float(problem.split()[3]) - (30 + beyond_s)) < 1
    assert "timedatectl set-ntp true" in problem


def test_a_host_that_took_a_minute_to_time_out_puts_no_other_clock_wrong() -> None:
    """They answered at once; the survey went on for as long as the dead host was waited for."""
    (host,), declared = hosts_of(1), ClusterConfig()
    answer = state(clock_s=1_000_000.5)
    found = preflight.judge([host], {"n1": declared}, {}, {"n1": answer}, (1_000_000.0, 1_000_060.0))
    assert found["n1"].problems == ()


# ---------------------------------------------------------------------------------------- ports, addresses


def test_every_busy_port_is_named_with_its_holder_and_what_to_do() -> None:
    held = [f"port {port} (gcs) is held by redis (pid 7) of user ada" for port in (6379, 8265)]
    found = problems(state(busy_ports=held))
    assert [one.partition(". ")[0] for one in found] == held
    assert all("set another port in cluster.yaml under ray.ports" in one for one in found)


def test_an_address_that_is_not_the_hosts_own_is_refused() -> None:
    (problem,) = problems(state(), address="198.51.100.7")
    assert problem == (
        "the other nodes shall reach it at 198.51.100.7, which is none of its addresses (192.0.2.1). "
        "Set raytools_address in the inventory"
    )


@pytest.mark.parametrize("address", ["192.0.2.1", "host1.example.org", "10-0-0-1.example.org"])
def test_an_own_address_and_a_name_are_accepted(address: str) -> None:
    assert problems(state(), address=address) == ()


def test_unknown_addresses_are_no_problem() -> None:
    assert problems(state(network__addresses=None), address="198.51.100.7") == ()


@settings(deadline=None)
@given(st.ip_addresses(v=6))
def test_an_ipv6_address_may_be_written_in_full(address: ipaddress.IPv6Address) -> None:
    answer = state(network__addresses=[str(address)])
    assert problems(answer, address=address.exploded) == ()


def test_one_machine_under_two_names_is_refused_at_the_second() -> None:
    one = {"network__addresses": ["192.0.2.1", "192.0.2.2"]}
    found = judged(state(1, **one), state(1, **one))
    assert found["n1"].problems == ()
    (problem,) = found["n2"].problems
    assert problem == "it is the same machine as n1. Name each machine once"


def test_two_machines_of_one_host_name_are_refused_at_the_second() -> None:
    found = judged(state(1), state(2, host__hostname="host1"), state(3))
    assert [len(one.problems) for one in found.values()] == [0, 1, 0]
    assert "its host name host1 is also that of n1" in found["n2"].problems[0]


def test_two_containers_of_one_image_and_kernel_are_two_machines() -> None:
    """machine-id comes with the image, the boot id from the kernel: the host name tells them apart."""
    ids = {"host__machine_id": None, "host__boot_id": "b"}
    found = judged(state(1, **ids), state(2, **ids))
    assert not any(one.problems for one in found.values())


# ----------------------------------------------------------------------------------------------- accounts

SHARED = {"storage": {"type": "existing", "path": "/data"}}


def account(uid: int) -> list[Any]:
    return [uid, uid, "/opt/rt/home", "/usr/sbin/nologin"]


def test_on_shared_storage_the_account_needs_one_uid() -> None:
    found = judged(state(1, account=account(990)), state(2, account=account(991)), config=SHARED)
    assert "user ray has uid 991, on n1 uid 990; shared storage needs one" in found["n2"].problems[0]
    assert "user ray has uid 990, on n2 uid 991" in found["n1"].problems[0]


@pytest.mark.parametrize("other", [account(990), None])
def test_equal_uids_and_accounts_that_do_not_exist_yet_are_fine(other: Any) -> None:
    found = judged(state(1, account=account(990)), state(2, account=other), config=SHARED)
    assert not any(one.problems for one in found.values())


def test_a_host_that_does_not_answer_has_no_uid_to_compare() -> None:
    assert judged(state(1, account=account(990)), None, config=SHARED)["n1"].problems == ()


def test_where_each_node_keeps_its_own_results_uids_may_differ() -> None:
    found = judged(state(1, account=account(990)), state(2, account=account(991)))
    assert not any(one.problems for one in found.values())


def test_a_shared_directory_has_to_be_there_before_anything_is_done() -> None:
    missing = {"path": "/data", "directory": False, "mounted": False}
    (problem,) = problems(state(storage=missing), config=SHARED)
    assert problem.startswith(
        "/data is not a directory, expected the shared one of `storage: {type: existing}`"
    )
    assert problems(state(storage=None)) == (), "each node makes its own"


def test_nfs_wants_root_and_systemd() -> None:
    nfs = {"storage": {"type": "nfs"}}
    assert problems(state(), config=nfs) == ()
    (problem,) = problems(state(systemd=False, host__init="other"), config=nfs)
    assert "mount the export yourself and use `type: existing` with its path" in problem


def test_a_shared_directory_whose_server_is_dead_is_no_directory_that_is_missing() -> None:
    dead = {"path": "/data", "directory": False, "mounted": True, "stalled": True}
    (problem,) = problems(state(storage=dead), config=SHARED)
    assert problem.startswith("/data does not answer, expected the shared one")


ISOLATED = {"ray": {"isolation": True}}


@pytest.mark.parametrize("mode", ["v1", "hybrid", None])
def test_rays_isolation_is_refused_without_cgroup_v2_and_the_cause_is_named(mode: str | None) -> None:
    cgroup = {"mode": mode, "controllers": ["cpuset", "memory"]}
    (problem,) = problems(state(cgroup=cgroup), config=ISOLATED)
    assert problem.startswith(f"ray.isolation: true needs cgroup v2 alone, found {mode or 'no cgroups'}.")
    assert "or leave out ray.isolation" in problem


def test_rays_isolation_is_refused_without_a_unit_to_delegate_to() -> None:
    (problem,) = problems(state(systemd=False, host__init="other"), config=ISOLATED)
    assert problem.startswith("ray.isolation: true needs a unit of systemd with delegated groups")


@pytest.mark.parametrize(("cpus", "refused"), [(1, True), (2, False)])
def test_rays_isolation_is_refused_where_it_would_leave_no_cpu(cpus: int, refused: bool) -> None:
    found = problems(state(cpu={**state()["facts"]["cpu"], "usable": cpus}), config=ISOLATED, plans={})
    assert [text.partition(",")[0] for text in found] == (
        ["ray.isolation: true sets at least 1 CPU aside for Ray itself"] if refused else []
    )


# -------------------------------------------------------------------------------------------------- notes


@pytest.mark.parametrize(
    ("system", "noted"),
    [("Debian GNU/Linux 12 (bookworm)", False), (None, False), ("Alpine Linux v3.20", True)],
)
def test_a_system_nobody_has_tried_is_noted(system: str | None, noted: bool) -> None:
    found = notes(state(host__os=system))
    assert bool(found) is noted
    assert all(note.startswith("its system is Alpine Linux v3.20; ") for note in found)


def test_a_host_without_cgroups_is_noted() -> None:
    (note,) = notes(state(cgroup={"mode": None, "controllers": []}))
    assert "no cgroups: runs are refused unless they say --enforce best-effort" in note


@pytest.mark.parametrize("mode", ["v1", "hybrid"])
def test_a_missing_controller_is_named(mode: str) -> None:
    (note,) = notes(state(cgroup={"mode": mode, "controllers": ["cpu", "memory"]}))
    assert note == "its cgroups lack cpuset: runs are refused there"


def test_few_open_files_are_noted_only_where_no_unit_raises_them() -> None:
    few = {"limits": {"nofile_hard": 1024}}
    assert notes(state(**few)) == ()
    found = notes(state(systemd=False, **few))
    assert found[0].startswith("1024 open files are allowed, Ray wants 8192")
    assert len(notes(state(systemd=False, limits={"nofile_hard": None}))) == 1, "unlimited"


def test_what_a_plain_user_goes_without_is_said() -> None:
    plain = state(user={"name": "ada", "uid": 1000}, privileged=False, systemd=False)
    (note,) = notes(plain, hostvars={"ansible_become": False})
    assert note.startswith("connected as ada, not root: no service user, no unit")
    assert note.endswith("sudo raytools grant --user ada")


def test_root_without_systemd_is_told_that_ray_does_not_come_back() -> None:
    (note,) = notes(state(systemd=False))
    assert note == "systemd is not PID 1: Ray is a process, and does not come back after a reboot"


def test_a_connection_as_root_is_told_how_ray_gets_an_account_of_its_own() -> None:
    (note,) = notes(state(), hostvars={"ansible_become": False})
    assert (
        note == "connected as root itself: Ray runs as root. For an account of its own: ansible_become: true"
    )


def test_this_machine_needs_none_of_these_remarks() -> None:
    local = {"ansible_connection": "local", "ansible_become": False}
    assert notes(state(systemd=False, privileged=False), hostvars=local) == ()


def test_other_rays_are_named() -> None:
    (note,) = notes(state(other_rays=["another Ray of user ada (pid 7, temp dir /tmp/ray)"]))
    assert note.startswith("there is another Ray of user ada (pid 7, temp dir /tmp/ray). It shares CPUs")


@pytest.mark.parametrize(
    ("resolved", "noted"),
    [
        (["127.0.1.1"], True),
        (["192.0.2.1"], False),
        (["127.0.1.1", "192.0.2.1"], False),
        ([], False),
        (None, False),
    ],
)
def test_a_name_that_leads_to_loopback_is_noted(resolved: Any, noted: bool) -> None:
    found = notes(state(network__hostname_resolves_to=resolved))
    assert bool(found) is noted
    assert all("its own name host1 resolves to 127.0.1.1" in one for one in found)
