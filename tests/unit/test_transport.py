"""What transport makes of inventory and answers, without a node: ssh configuration, JSON, the archive."""

from __future__ import annotations

import dataclasses
import io
import shlex
import zipfile
from pathlib import Path
from typing import Any

import paramiko
import pytest

from raytools import ssh, transport
from raytools.errors import TransportError
from raytools.inventory import Host
from raytools.transport import Answer, NodeCommand, call


def host(name: str = "n1", address: str = "192.0.2.11", **changes: Any) -> Host:
    plain = Host(
        name=name, role="worker", connection="ssh", address=address, cluster_address=None, port=None,
        user=None, root="/opt/raytools", python=None, become=False, variables={}, overrides={},
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def looked_up(name: str, *hosts: Host, user_config: str = "") -> dict[str, Any]:
    """What ssh and fabric find for a name in the generated configuration."""
    text = ssh.config_text(hosts, Path("/p/.raytools"), user_config)
    return dict(paramiko.SSHConfig.from_text(text).lookup(name))


# --- ssh configuration ---------------------------------------------------------------------------


def test_what_the_inventory_says_of_a_host_is_in_its_block() -> None:
    variables = {"ansible_ssh_private_key_file": "/keys/id", "ansible_ssh_common_args": "-o ProxyJump=gate"}
    found = looked_up("n1", host(port=2222, user="ada", variables=variables))
    assert (found["hostname"], found["port"], found["user"]) == ("192.0.2.11", "2222", "ada")
    assert found["identityfile"] == ["/keys/id"]
    assert found["proxyjump"] == "gate"


@pytest.mark.parametrize("name", ["n1", "192.0.2.11"])
def test_unknown_host_keys_are_rejected_by_name_and_by_address(name: str) -> None:
    """Ansible calls ssh with the address, fabric with the name."""
    found = looked_up(
        name, host(), user_config="Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
    )
    assert found["stricthostkeychecking"] == "yes"
    assert "/p/.raytools/ssh/known_hosts" in str(found["userknownhostsfile"])


def test_the_users_own_configuration_holds_where_the_inventory_is_silent() -> None:
    user_config = "Host lab1\n  HostName 198.51.100.7\n  User grace\n  IdentityFile /keys/lab\n"
    found = looked_up("n1", host(address="lab1"), user_config=user_config)
    assert (found["hostname"], found["user"], found["identityfile"]) == (
        "198.51.100.7",
        "grace",
        ["/keys/lab"],
    )
    found = looked_up("n1", host(address="lab1", user="ada"), user_config=user_config)
    assert found["user"] == "ada"


def test_two_hosts_behind_one_address_keep_their_ports() -> None:
    hosts = (host("a", "127.0.0.1", port=2201), host("b", "127.0.0.1", port=2202))
    assert [looked_up(name, *hosts)["port"] for name in ("a", "b")] == ["2201", "2202"]


def test_local_hosts_have_no_block() -> None:
    assert "Host" not in ssh.config_text([host(connection="local")], Path("/p"), "")


def test_the_files_are_private_and_written_only_when_they_change(tmp_path: Path) -> None:
    path = ssh.write_config([host()], tmp_path / "state")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert ssh.known_hosts_path(tmp_path / "state").stat().st_mode & 0o777 == 0o600
    before = path.stat().st_ino
    ssh.write_config([host()], tmp_path / "state")
    assert path.stat().st_ino == before
    ssh.write_config([host(port=2222)], tmp_path / "state")
    assert "Port 2222" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", []),
        ("-o ProxyJump=gate", [("ProxyJump", "gate")]),
        ("-o 'ProxyCommand ssh -W %h:%p gate'", [("ProxyCommand", "ssh -W %h:%p gate")]),
        ("-oConnectTimeout=5 -J gate", [("ConnectTimeout", "5"), ("ProxyJump", "gate")]),
        ("-i /keys/id -p 2222 -l ada -A", [
            ("IdentityFile", "/keys/id"), ("Port", "2222"), ("User", "ada"), ("ForwardAgent", "yes"),
        ]),
    ],
)  # fmt: skip
def test_ansible_ssh_common_args_become_configuration(
    arguments: str, expected: list[tuple[str, str]]
) -> None:
    assert ssh.ssh_options(arguments) == expected


@pytest.mark.parametrize("arguments", ["-w 0:0", "-o 'unclosed", "-J"])
def test_an_option_that_cannot_be_followed_is_an_error_and_not_left_out(arguments: str) -> None:
    with pytest.raises(TransportError, match="ansible_ssh_common_args"):
        ssh.ssh_options(arguments)


def test_a_node_that_logs_in_and_starts_no_session_is_told_from_one_that_does_not_answer(
    tmp_path: Path,
) -> None:
    error = paramiko.SSHException("Timeout opening channel.")
    said = ssh._sentence(host(), error, 10.0, False, tmp_path, has_greeted=True)
    assert said.startswith("n1 (192.0.2.11 port 22): logged in, but it opened no session within 30 s.")
    assert "overloaded" in said


SAW_EOF = "Authentication failed: transport shut down or saw EOF"
SILENT = "did not greet as an ssh server within 10 s"
REFUSED, CLOSED, LATE = "the node refused to log", "closed the connection before", "did not finish the log-in"


@pytest.mark.parametrize(
    ("kind", "text", "has_greeted", "was_closed", "expected"),
    [
        (paramiko.AuthenticationException, "Authentication failed.", True, True, REFUSED),
        (paramiko.AuthenticationException, SAW_EOF, True, True, CLOSED),
        (paramiko.AuthenticationException, "Authentication timeout.", True, False, LATE),
        (
            paramiko.SSHException,
            "No existing session",
            True,
            False,
            LATE,
        ),  # tried with another key after that
        (paramiko.SSHException, "No existing session", False, False, SILENT),
        (paramiko.SSHException, "No existing session", True, True, CLOSED),
    ],
)
def test_only_a_node_that_says_no_has_refused_the_log_in(
    tmp_path: Path, kind: type[Exception], text: str, has_greeted: bool, was_closed: bool, expected: str
) -> None:
    said = ssh._sentence(host(), kind(text), 10.0, was_closed, tmp_path, has_greeted=has_greeted)
    assert expected in said


# --- answers -------------------------------------------------------------------------------------


def test_json_is_taken_from_a_good_answer() -> None:
    assert Answer('{"a": 1}', "noise", 0).json() == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer("", "", None, "n1: no answer within 3 s"), "no answer within 3 s"),
        (Answer("", "one\nthe reason\n", 2), "exit code 2: the reason"),
        (Answer("<html>oops", "", 0), "begins with '<html>oops'"),
        (Answer("", "", 0), "not JSON"),
    ],
)
def test_a_bad_answer_says_what_is_wrong(answer: Answer, said: str) -> None:
    with pytest.raises(TransportError, match=said):
        answer.json()


# --- what is sent --------------------------------------------------------------------------------


def test_the_archive_holds_the_node_part_and_nothing_else() -> None:
    names = zipfile.ZipFile(io.BytesIO(transport._archive())).namelist()
    assert {
        "raytools/__init__.py",
        "raytools/errors.py",
        "raytools/units.py",
        "raytools/node/facts.py",
    } <= set(names)
    assert not [name for name in names if not name.endswith(".py") or "doctor" in name or "cli" in name]


def test_the_receiving_program_survives_every_shells_quoting() -> None:
    line = shlex.join(transport._command_line(host(), NodeCommand(["facts"])))
    assert line.startswith("python3 -c ")
    assert not set(line) & set('\n$`!"')


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"become": True}, ["sudo", "-n", "-H", "-u", "root", "--"]),
        ({"become": True, "user": "root"}, []),
        (
            {"become": True, "variables": {"ansible_become_user": "ray"}},
            ["sudo", "-n", "-H", "-u", "ray", "--"],
        ),
    ],
)
def test_becoming_follows_the_inventory_and_never_prompts(
    changes: dict[str, Any], expected: list[str]
) -> None:
    assert transport._become(host(**changes), NodeCommand(["facts"])) == expected


def test_a_way_of_becoming_that_is_not_known_is_an_answer_with_an_error() -> None:
    method = {"ansible_become_method": "su"}
    answer = call([host(connection="local", become=True, variables=method)], NodeCommand(["facts"]), 5)["n1"]
    assert "found ansible_become_method su, expected sudo" in str(answer.error)


def test_ssh_without_a_place_for_its_configuration_is_refused() -> None:
    with pytest.raises(TransportError, match="state_dir"):
        call([host()], NodeCommand(["facts"]), 5)


def test_no_hosts_no_answers() -> None:
    assert call([], NodeCommand(["facts"]), 5) == {}


def test_a_call_to_one_host_leaves_the_others_in_the_ssh_configuration(tmp_path: Path) -> None:
    """The doctor asks the head and all hosts at the same time."""
    every = [host("n1", address="192.0.2.11"), host("n2", address="192.0.2.12")]
    path = ssh.write_config(every, tmp_path / "state")
    before = path.read_text()
    ssh.write_config(every[:1], tmp_path / "state")
    assert path.read_text() == before
    ssh.write_config([host("n1", address="192.0.2.99")], tmp_path / "state")
    assert "192.0.2.99" in path.read_text()
    assert "192.0.2.11" not in path.read_text()
