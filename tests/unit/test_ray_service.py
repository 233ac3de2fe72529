"""The Ray service's decisions, without a Ray: what restarts it, what it is started with, what errors say."""

from __future__ import annotations

import copy
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from raytools.errors import RaytoolsError
from raytools.node import ray_failure, ray_ports, ray_process, ray_service, ray_state, ray_temp_dir
from raytools.node.probe import DIGEST_VARIABLE

CHECKOUT = Path(__file__).resolve().parents[2]
UNIT_TEMPLATE = CHECKOUT / "playbooks" / "roles" / "ray" / "templates" / "ray.service.j2"


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    """A plan in its root, with a token."""
    (tmp_path / "token").write_text("0123")
    plan = {
        "schema": "raytools.node/1", "cluster": "demo", "name": "n1", "role": "head", "address": "192.0.2.1",
        "root": str(tmp_path), "user": "ray", "python": "/e/bin/python", "toolkit": "/t",
        "temp_dir": str(tmp_path / "tmp"),
        "environment": {"id": "e-1", "prefix": "/e", "lock_digest": "0"},
        "declared": {"cpus": None}, "physical": {"cpus": 2, "memory_bytes": 1}, "slots": [{"index": 0}],
        "logical": {"CPU": 2},
        "ray": {
            "gcs_address": "192.0.2.1:6379",
            "start_args": ["--head", '--resources={"run_slot": 1}', "--block"],
            "env": {"OMP_WAIT_POLICY": "passive", "PERCENT": 'a%b "c" $d \\e'},
            "ports": {"gcs": 6379, "dashboard": 8265, "client": 10001, "node_manager": 10101,
                      "dashboard_metrics": 10107, "workers": [20000, 20999]},
            "dashboard": {"enabled": True, "host": "127.0.0.1"}, "auth": "token",
            "token_path": str(tmp_path / "token"),
        },
        "runs": {"time_s": 1.0}, "storage": {"type": "local", "path": "/r"}, "doctor": {"waive": []},
    }  # fmt: skip
    (tmp_path / "node.json").write_text(json.dumps(plan))
    return plan


def changed(node: dict[str, Any], *path: str, value: Any) -> dict[str, Any]:
    other = copy.deepcopy(node)
    at = other
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return other


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("physical", "memory_bytes"), 2),
        (("declared", "cpus"), 2),
        (("runs", "time_s"), 2.0),
        (("storage", "path"), "/other"),
        (("doctor", "waive"), [{"code": "RT801"}]),
    ],
)
def test_what_ray_does_not_see_does_not_restart_it(node: dict[str, Any], path: Any, value: Any) -> None:
    other = changed(node, *path, value=value)
    assert other != node
    assert ray_state.digest(ray_state.seen_by_ray(other)) == ray_state.digest(ray_state.seen_by_ray(node))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("ray", "env", "OMP_WAIT_POLICY"), "active", "ray.env.OMP_WAIT_POLICY changed"),
        (("ray", "env", "NEW"), None, "ray.env.NEW changed"),
        (("slots",), [], "slots changed"),
        (("environment", "prefix"), "/other", "environment.prefix changed"),
    ],
)
def test_what_ray_sees_restarts_it_and_is_named(
    node: dict[str, Any], path: Any, value: Any, reason: str
) -> None:
    before = ray_state.seen_by_ray(node)
    after = ray_state.seen_by_ray(changed(node, *path, value=value))
    assert ray_state.digest(before) != ray_state.digest(after)
    assert ray_state.reason_of(before, after) == reason


def test_a_new_token_restarts_ray_and_is_not_shown(node: dict[str, Any], tmp_path: Path) -> None:
    before = ray_state.seen_by_ray(node)
    (tmp_path / "token").write_text("4567")
    after = ray_state.seen_by_ray(node)
    assert ray_state.reason_of(before, after) == "the token changed"
    assert "4567" not in json.dumps(after)


def test_many_changes_are_counted() -> None:
    assert ray_state.reason_of({}, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}) == "a, b, c and 2 more changed"


def test_rays_environment_inherits_proxies_and_nothing_else(node: dict[str, Any]) -> None:
    inherited = {
        "https_proxy": "http://p:1", "RAY_ADDRESS": "x", "TMPDIR": "/x", "PYTHONPATH": "/x", "SECRET": "x",
    }  # fmt: skip
    environment = ray_process.ray_environment(node, "s1", inherited)
    assert environment["https_proxy"] == "http://p:1"
    assert environment["PATH"].split(":")[0] == "/e/bin"
    assert environment["PYTHONPATH"] == "/t"
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == node["ray"]["token_path"]
    assert not {"RAY_ADDRESS", "TMPDIR", "SECRET"} & set(environment)


def test_authentication_is_explicit_also_when_it_is_off(node: dict[str, Any]) -> None:
    environment = ray_process.ray_environment(changed(node, "ray", "auth", value="disabled"), "s", {})
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN_PATH" not in environment


def unit_of(node: dict[str, Any], cgroup_mode: str = "v1") -> list[tuple[str, str]]:
    """Keys and values of the systemd unit, rendered as Ansible does."""
    template = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    text = template.from_string(UNIT_TEMPLATE.read_text()).render(
        ray_plan=node, ray_proxy={"https_proxy": "http://p:1"}, ray_digest="0a1b",
        ray_state={"facts": {"cgroup": {"mode": cgroup_mode}}},
    )  # fmt: skip
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return [(line.partition("=")[0], line.partition("=")[2]) for line in lines]


def test_the_systemd_unit_gives_ray_the_same_environment_as_the_process(node: dict[str, Any]) -> None:
    variables: dict[str, str] = {}
    for key, value in unit_of(node):
        if key == "Environment":
            pairs = (part.partition("=") for part in shlex.split(value))
            variables |= {name: text.replace("%%", "%") for name, _, text in pairs}
    assert variables.pop(DIGEST_VARIABLE) == "0a1b"
    process = ray_process.ray_environment(node, ray_process.SYSTEMD_SESSION, {"https_proxy": "http://p:1"})
    set_by_systemd = {"HOME", "USER", "LOGNAME"}  # because of User=
    assert variables == {name: value for name, value in process.items() if name not in set_by_systemd}


def test_the_systemd_unit_starts_ray_with_the_plans_arguments(node: dict[str, Any]) -> None:
    unit = dict(unit_of(node))
    into_leaf = [node["python"], "-m", "raytools.node", "enter-main", "ray-start"]
    assert shlex.split(unit["ExecStart"]) == [*into_leaf, "/e/bin/ray", "start", *node["ray"]["start_args"]]
    assert unit["KillSignal"] == "SIGTERM"
    assert unit["Delegate"] == "cpuset cpu memory pids"


def test_the_unit_of_a_worker_waits_for_its_head(node: dict[str, Any]) -> None:
    unit = dict(unit_of(changed(node, "role", value="worker")))
    command = shlex.split(unit["ExecStart"])
    into_leaf = [node["python"], "-m", "raytools.node", "enter-main", "ray-start"]
    assert command[:7] == [*into_leaf, "--after", node["ray"]["gcs_address"]]
    assert command[7:9] == ["/e/bin/ray", "start"]


def test_on_cgroup_v1_the_unit_gives_groups_to_its_account_as_root(node: dict[str, Any]) -> None:
    steps = [shlex.split(value) for key, value in unit_of(node) if key == "ExecStartPre"]
    assert dict(unit_of(node))["User"] == "ray"
    assert steps[0][0].startswith("+")  # the one step that is root's
    assert steps[0][1:] == ["-m", "raytools.node", "grant", "--user", "ray"]
    assert not any(step[0].startswith("+") for step in steps[1:])


def test_on_cgroup_v2_the_unit_does_nothing_as_root(node: dict[str, Any]) -> None:
    steps = [value for key, value in unit_of(node, cgroup_mode="v2") if key.startswith("Exec")]
    assert not any(step.startswith("+") or "grant" in step for step in steps)


def test_without_an_account_of_its_own_the_unit_names_no_user(node: dict[str, Any]) -> None:
    unit = unit_of(changed(node, "user", value=None))
    assert "User" not in dict(unit)
    assert not any("grant" in value for key, value in unit if key.startswith("Exec"))


# --- ports ----------------------------------------------------------------------------------------


def test_a_listener_is_named_with_its_process_and_its_user() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (busy,) = ray_ports.listeners({"gcs": port})
    name = Path("/proc/self/comm").read_text().strip()
    user = ray_temp_dir.name_of(os.getuid())
    assert (busy.port, busy.pid, busy.name) == (port, os.getpid(), name)
    assert str(busy) == f"port {port} (gcs) is held by {name} (pid {os.getpid()}) of user {user}"


def test_a_port_that_is_bound_but_not_listened_on_is_free() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert ray_ports.listeners({"gcs": bound.getsockname()[1]}) == []


def test_a_listener_on_ipv6_is_seen() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        try:
            taken.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
        taken.listen()
        (busy,) = ray_ports.listeners({"gcs": taken.getsockname()[1]})
    assert busy.pid == os.getpid()


def test_two_processes_on_one_port_are_both_named() -> None:
    """Each at an address of its own: ours must not hide the other."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = (
            "import socket, sys\ns = socket.socket()\n"
            f"s.bind(('127.0.0.2', {port}))\ns.listen()\nprint('up', flush=True)\nsys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"up\n"
            found = ray_ports.listeners({"gcs": port})
            assert {one.pid for one in found} == {os.getpid(), other.pid}
            other.communicate()


def test_a_process_whose_name_is_no_text_is_named_all_the_same(tmp_path: Path) -> None:
    """The kernel cuts a name after 15 bytes, also within a letter."""
    code = (
        "import socket, sys\nopen('/proc/self/comm', 'wb').write(b'r\\xc3')\n"
        "s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n"
        "print(s.getsockname()[1], flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        (busy,) = ray_ports.listeners({"gcs": int(other.stdout.readline())})
        assert busy.pid == other.pid
        assert str(busy).startswith(f"port {busy.port} (gcs) is held by r")
        other.communicate()


def test_the_ray_of_a_limited_run_is_not_another_ray() -> None:
    """It stays inside the run's slot. A process with a raylet's name and flags stands for one."""
    code = "open('/proc/self/comm', 'w').write('raylet'); print('up', flush=True); input()"
    command = [sys.executable, "-S", "-c", code, "--temp_dir=/tmp/rt-none/ray"]
    for run_id, expected in ((None, True), ("r1", False)):
        variables = {"RAYTOOLS_RUN_ID": run_id} if run_id else {}
        with subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as ray:
            assert ray.stdout is not None
            ray.stdout.readline()
            found = [other for other in ray_ports.foreign_rays("/tmp/rt-mine/ray") if other.pid == ray.pid]
            assert bool(found) is expected
            ray.communicate("\n")
            assert all(f"(pid {ray.pid}, temp dir /tmp/rt-none/ray)" in str(other) for other in found)


def test_a_worker_does_not_ask_for_the_heads_ports(node: dict[str, Any]) -> None:
    assert set(ray_ports.pinned_ports(node)) == {
        "gcs", "dashboard", "client", "node_manager", "dashboard_metrics",
    }  # fmt: skip
    assert set(ray_ports.pinned_ports(changed(node, "role", value="worker"))) == {"node_manager"}
    without_dashboard = changed(node, "ray", "dashboard", "enabled", value=False)
    assert set(ray_ports.pinned_ports(without_dashboard)) == {"gcs", "client", "node_manager"}


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("RuntimeError: Version mismatch: The cluster was started with: Ray: 2.58.1", "version differs"),
        ("Token authentication is enabled but no authentication token was found", "the token is missing"),
        ("Error: No such option: --no-such", "does not know an argument"),
        ("ModuleNotFoundError: No module named 'ray'", "not complete"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("something never seen", "Ray ended at start"),
    ],
)
def test_a_failed_start_is_explained_and_quoted(tmp_path: Path, said: str, cause: str) -> None:
    log = tmp_path / "ray.log"
    log.write_text(f"first\n\x1b[31m{said}\x1b[39m\n")
    text = str(ray_failure.start_error(log, tmp_path, still_running=False))
    assert cause in text
    assert f"| {said}" in text
    assert str(log) in text


def test_a_cause_in_a_components_log_is_found(tmp_path: Path) -> None:
    logs = tmp_path / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("Failed to bind: Address already in use")
    text = str(ray_failure.start_error(tmp_path / "none.log", tmp_path, still_running=True))
    assert "Ray did not come up: a port was taken" in text
    assert "(it said nothing)" in text


def test_the_temp_dir_is_ours_alone_and_linked(tmp_path: Path) -> None:
    temp_dir = tmp_path / "rt" / "ray"
    temp_dir.parent.mkdir()
    temp_dir.parent.chmod(0o777)
    ray_temp_dir.make(tmp_path, temp_dir)
    assert stat.S_IMODE(temp_dir.parent.stat().st_mode) == 0o700
    assert temp_dir.is_dir()
    assert (tmp_path / "ray").readlink() == temp_dir


def test_a_link_in_place_of_the_temp_dir_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "rt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RaytoolsError, match=r"is a file or link of user .* expected a directory of user"):
        ray_temp_dir.make(tmp_path, tmp_path / "rt" / "ray")


def test_a_directory_that_all_users_share_is_never_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(RaytoolsError, match="is shared by all users"):
        ray_temp_dir.make(tmp_path, tmp_path / "rt")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


def test_cleaning_leaves_the_logs_of_the_last_three_sessions(tmp_path: Path) -> None:
    for day in range(5):
        session = tmp_path / f"session_2026-01-0{day}"
        (session / "logs").mkdir(parents=True)
        (session / "logs" / "raylet.out").touch()
        (session / "sockets").mkdir()
        (session / "sockets" / "raylet").touch()
        (session / "port").touch()
    (tmp_path / "session_latest").symlink_to(tmp_path / "session_2026-01-04")
    ray_temp_dir.clean(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [f"session_2026-01-0{day}/logs/raylet.out" for day in (2, 3, 4)]
    ray_temp_dir.clean(tmp_path / "gone")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        ('{"schema": "other"}', "is not a plan"),
        ("[]", "is not a plan"),
    ],
)
def test_an_unusable_plan_is_one_clear_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "node.json").write_text(content)
    assert ray_service.main(["ensure", "--root", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ray ensure: ")
    assert expected in captured.err


def test_a_missing_or_empty_token_is_refused_with_the_command_that_makes_one(
    node: dict[str, Any], tmp_path: Path
) -> None:
    for make in (lambda path: path.write_text("\n"), lambda path: path.unlink()):
        make(tmp_path / "token")
        with pytest.raises(RaytoolsError, match=r"there is no token .*playbooks/ray\.yml"):
            ray_state.seen_by_ray(node)


def test_a_state_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "ray.state.json").write_text('{"pid": 1}')
    with pytest.raises(RaytoolsError, match=r"ray\.state\.json cannot be used"):
        ray_state.read_state(tmp_path)


def test_a_reused_pid_is_not_our_process() -> None:
    own = ray_process.identify(os.getpid())
    assert own is not None
    assert own.alive
    assert not ray_process.ProcessId(own.pid, own.start_time_ticks - 1).alive
    assert ray_process.identify(2**22 + 1) is None


def test_stopping_what_does_not_run_is_no_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ray_service.main(["stop", "--root", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"changed": False, "killed": []}
