"""From bare hosts to a checked cluster: what a host is then; a second run finds nothing to do."""

from __future__ import annotations

import re

import pytest

from tests.lab.cluster import HEAD, HOSTS, NOTHING, ROOT, WORKERS, Cluster, FirstRun, told

pytestmark = pytest.mark.timeout(900)

PORTS = "6379 8265 10001 10101 10102 10103 10104 10105 10106 10107 10108"


# --- check mode, and the first run ---


def test_check_mode_of_a_cluster_that_was_never_locked_ends_without_a_failure(first: FirstRun) -> None:
    assert first.unlocked.exit_code == 0, first.unlocked.output
    assert "There is nothing more to check before the environment is locked" in first.unlocked.said


def test_check_mode_says_what_would_change_and_changes_nothing(first: FirstRun) -> None:
    assert first.checked.exit_code == 0, first.checked.output
    assert set(first.checked.changed) == set(HOSTS)
    assert all(first.checked.changed.values())
    assert "Make the service account" in first.checked.output
    assert first.differences == []


def test_the_first_run_succeeds_on_every_host(first: FirstRun) -> None:
    assert first.played.exit_code == 0, first.played.output[-6000:]
    assert set(first.played.recap) == set(HOSTS)
    assert all(recap.failed == recap.unreachable == 0 for recap in first.played.recap.values())
    print(f"first run: {first.played.wall_s:.0f} s")


# --- what a provisioned host is ---


@pytest.mark.parametrize("host", HOSTS)
def test_the_service_account_has_no_log_in_no_password_and_no_sudo(cluster: Cluster, host: str) -> None:
    entry = cluster.sh(host, "getent passwd ray").split(":")
    assert entry[2] == entry[3] == "60990"
    assert entry[6] == "/usr/sbin/nologin"
    assert cluster.sh(host, "getent shadow ray").split(":")[1].startswith(("!", "*"))
    assert cluster.sh(host, "id -nG ray") == "ray"
    assert "not allowed" in cluster.sh(host, "sudo -n -l -U ray 2>&1", check=False)


@pytest.mark.parametrize("host", HOSTS)
def test_ray_is_an_enabled_unit_of_that_account_in_the_slice(cluster: Cluster, host: str) -> None:
    unit = cluster.unit(host)
    assert unit["ActiveState"] == "active"
    assert unit["UnitFileState"] == "enabled"
    assert unit["Slice"] == "raytools.slice"
    assert unit["Delegate"] == "yes"
    assert set(unit["DelegateControllers"].split()) == {"cpu", "cpuset", "memory", "pids"}
    assert "/raytools.slice/" in cluster.sh(host, f"cat /proc/{unit['MainPID']}/cgroup")
    raylet = cluster.raylet(host)
    assert cluster.sh(host, f"ps -o user= -p {raylet}") == "ray"
    assert cluster.sh(host, f"systemd-analyze verify {cluster.unit_name} 2>&1", check=False) == ""


def test_the_token_is_one_and_the_owners_alone(cluster: Cluster) -> None:
    seen = {cluster.sh(host, f"stat -c '%a %U' {ROOT}/token; sha256sum <{ROOT}/token") for host in HOSTS}
    assert len(seen) == 1, seen
    assert seen.pop().startswith("600 ray")


def test_the_token_is_in_no_output_and_no_unit(cluster: Cluster, first: FirstRun) -> None:
    token = cluster.sh(HEAD, f"cat {ROOT}/token")
    assert re.fullmatch(r"[0-9a-fA-F]{64}", token)
    assert token not in first.played.output  # it ran with -vvv
    assert token not in cluster.play("ray", "-vvv").output
    for host in HOSTS:
        places = f"/etc {ROOT}/node.json {ROOT}/logs {ROOT}/stamps"
        assert cluster.sh(host, f"grep -rls {token} {places}", check=False) == ""
        assert token not in cluster.sh(host, "ps -eo args e")


def test_a_client_without_the_token_is_refused(cluster: Cluster) -> None:
    gcs = f"{cluster.lab.addresses[HEAD]}:6379"
    code = f"import ray; ray.init(address='{gcs}', logging_level='ERROR'); print('connected')"
    python = f"setpriv --reuid=ray --regid=ray --init-groups -- {ROOT}/envs/current/bin/python"
    as_ray = f'timeout 60 {python} -c "{code}"'
    script = (
        "cd /tmp; export RAY_gcs_rpc_server_connect_timeout_s=3; d=$(mktemp -d); "
        f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={ROOT}/token {as_ray} >$d/with 2>&1 & "
        f"RAY_AUTH_MODE=disabled {as_ray} >$d/without 2>&1; echo exit code $?; wait; cat $d/with; rm -r $d"
    )
    without, with_token = cluster.sh(HEAD, script).split("\n", 1)
    assert "connected" in with_token
    assert without != "exit code 0"


def test_the_dashboard_listens_on_loopback_only(cluster: Cluster) -> None:
    listening = cluster.sh(HEAD, "ss -Hltn 'sport = :8265' | awk '{print $4}'").split()
    assert listening == ["127.0.0.1:8265"]
    for host in WORKERS:
        assert cluster.sh(host, "ss -Hltn 'sport = :8265'") == ""


@pytest.mark.parametrize("host", HOSTS)
def test_ray_listens_on_the_ports_of_the_plan_and_on_no_others(cluster: Cluster, host: str) -> None:
    groups = cluster.sh(host, f"grep -l /{cluster.unit_name} /proc/[0-9]*/cgroup", check=False)
    pids = [path.split("/")[2] for path in groups.split()]
    lines = cluster.sh(host, "ss -Hltnp").splitlines()
    ours = [line for line in lines if any(f"pid={pid}," in line for pid in pids)]
    ports = {int(line.split()[3].rpartition(":")[2]) for line in ours if "127.0.0.1" not in line.split()[3]}
    assert ports
    unexpected = {port for port in ports if str(port) not in PORTS.split() and not 20000 <= port <= 20999}
    assert not unexpected, [line for line in ours if any(f":{port} " in line for port in unexpected)]


@pytest.mark.parametrize("host", HOSTS)
def test_the_kernel_settings_are_in_force(cluster: Cluster, host: str) -> None:
    assert cluster.sh(host, "cat /proc/sys/net/core/somaxconn") == "4096"
    first_outgoing = int(cluster.sh(host, "cut -f1 /proc/sys/net/ipv4/ip_local_port_range"))
    reserved = cluster.sh(host, "cat /proc/sys/net/ipv4/ip_local_reserved_ports")
    assert ("20000-20999" in reserved) == (first_outgoing <= 20999)


@pytest.mark.parametrize("host", HOSTS)
def test_directories_belong_to_whom_they_should(cluster: Cluster, host: str) -> None:
    expected = {
        ROOT: "root:755", f"{ROOT}/envs": "root:755", f"{ROOT}/toolkit": "root:755",
        f"{ROOT}/node.json": "root:644", f"{ROOT}/home": "ray:700", f"{ROOT}/logs": "ray:755",
        "/shared/results": "ray:755", "/shared/records": "ray:755",
    }  # fmt: skip
    found = cluster.sh(host, f"stat -c '%n %U:%a' {' '.join(expected)}")
    assert dict(line.split() for line in found.splitlines()) == expected
    temp_dir = cluster.sh(host, f"readlink {ROOT}/ray")
    assert cluster.sh(host, f"stat -c '%U:%a' {temp_dir}/..") == "ray:700"
    assert cluster.sh(host, "stat -c '%U:%a' /run/lock/raytools") == "root:1777"


def test_the_environment_is_byte_for_byte_the_same_on_all_nodes(cluster: Cluster) -> None:
    listed = cluster.raytools("env", "list", "--json")
    assert listed.exit_code == 0, listed.output
    found = listed.json()["environments"]
    assert len(found) == 1
    (environment,) = found.values()
    assert sorted(environment["nodes"]) == sorted(HOSTS)
    assert environment["equal"]
    assert len(environment["content_digests"]) == 1
    for host in HOSTS:
        assert cluster.sh(host, f"find {ROOT}/envs -maxdepth 1 -name '.*.part-*'") == ""


@pytest.mark.parametrize("host", HOSTS)
def test_logrotate_takes_its_configuration_and_rotates_rays_log(cluster: Cluster, host: str) -> None:
    said = cluster.sh(host, "logrotate --debug /etc/logrotate.conf 2>&1")
    assert "error" not in said.lower(), said
    assert f"{ROOT}/logs/ray.log" in said


# --- again ---


def test_the_second_run_changes_nothing_and_the_raylets_run_on(cluster: Cluster) -> None:
    before = cluster.raylets()
    again = cluster.play("cluster")
    assert again.exit_code == 0, again.output
    again.assert_nothing_changed()
    assert None not in before.values()
    assert cluster.raylets() == before
    print(f"second run: {again.wall_s:.1f} s")


def test_check_mode_of_a_finished_cluster_finds_nothing_to_change(cluster: Cluster) -> None:
    checked = cluster.play("cluster", "--check")
    assert checked.exit_code == 0, checked.output
    checked.assert_nothing_changed()


def test_a_run_limited_to_one_host_leaves_the_others_out(cluster: Cluster) -> None:
    before = cluster.raylets()
    played = cluster.play("cluster", "--limit", "n3")
    assert played.exit_code == 0, played.output
    assert played.changed == {"n3": 0}, played.output
    assert cluster.raylets() == before


def test_a_run_of_one_tag_does_that_part(cluster: Cluster) -> None:
    before = cluster.raylets()
    played = cluster.play("cluster", "--tags", "ray")
    assert played.exit_code == 0, played.output
    played.assert_nothing_changed()
    assert "PLAY [Ray]" in played.output
    assert "storage : Look whether" not in played.output
    assert cluster.raylets() == before


def test_a_run_of_one_tag_starts_what_was_stopped(cluster: Cluster) -> None:
    cluster.sh("n2", f"systemctl stop {cluster.unit_name}")
    played = cluster.play("cluster", "--tags", "ray")
    assert played.exit_code == 0, played.output
    assert played.changed == {**NOTHING, "n2": 1}
    assert cluster.lab.addresses["n2"] in cluster.alive()


def test_the_doctor_finds_nothing_worse_than_info(cluster: Cluster) -> None:
    report = cluster.raytools("doctor", "--threshold", "warning", "--json")
    assert report.faults == [], told(report.faults)
    assert report.exit_code == 0


# --- it works ---


def test_what_one_node_writes_the_others_read_with_the_same_owner(cluster: Cluster) -> None:
    as_ray = "setpriv --reuid=ray --regid=ray --init-groups --"
    for writer in HOSTS:
        cluster.sh(writer, f"{as_ray} sh -c 'echo from {writer} >/shared/results/of-{writer}'")
    for reader in HOSTS:
        for writer in HOSTS:
            path = f"/shared/results/of-{writer}"
            assert cluster.sh(reader, f"{as_ray} cat {path}; stat -c %u {path}") == f"from {writer}\n60990"
    cluster.sh(HEAD, "rm /shared/results/of-*")


def test_autogluon_runs_on_every_node_and_is_limited_on_each(cluster: Cluster) -> None:
    smoke = cluster.raytools(
        "smoke", "--workload", "autogluon", "--dataset", "breast_cancer", "--models", "GBM,RF",
        "--set", "trees=20", "--time-limit", "300s", "--json",
        "--max-slower", "1000%",  # the hosts share this machine's CPUs
        wait_s=800,
    )  # fmt: skip
    assert smoke.exit_code == 0, smoke.output
    document = smoke.json()
    assert document["verdict"] == "pass"
    records = {run["record"]["host"]["name"]: run["record"] for run in document["runs"]}
    assert sorted(records) == sorted(HOSTS)
    for host, record in records.items():
        assert record["outcome"] == "ok", record
        assert record["enforced"]["cpu"], (host, record["enforced"])
        assert record["enforced"]["memory"], (host, record["enforced"])
        assert record["enforced"]["missing"] == [], (host, record["enforced"])
        assert record["used"]["memory_peak_bytes"] <= record["limits"]["memory_bytes"]
    for run in document["runs"]:
        own, metrics = run["record"]["host"]["name"], run["metrics"]
        assert metrics["reload_same"], metrics
        assert metrics["clone_elsewhere_same"], metrics
        assert metrics["clone_loaded_on"] in set(HOSTS) - {own}, (own, metrics["clone_loaded_on"])
