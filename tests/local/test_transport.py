"""Calls to nodes over a real sshd of our own on loopback, and without ssh."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raytools import ssh
from raytools.inventory import Host
from raytools.transport import Answer, NodeCommand, call, put_file, stream


def make_host(root: Path, **changes: Any) -> Host:
    host = Host(
        name="n1", role="head", connection="local", address="127.0.0.1", cluster_address=None, port=None,
        user=None, root=str(root), python=sys.executable, become=False, variables={}, overrides={},
    )  # fmt: skip
    return dataclasses.replace(host, **changes)


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            message = f"{program} is not installed (apt-get install openssh-server openssh-client)"
            if os.environ.get("CI") == "true":
                pytest.fail(message)
            pytest.skip(message)


@dataclasses.dataclass
class Server:
    """An sshd on 127.0.0.1, and a host of the inventory that leads to it."""

    directory: Path
    host: Host
    state_dir: Path

    @property
    def host_key(self) -> Path:
        return self.directory / "host_key"

    def call(self, argv: list[str], timeout_s: float = 20.0, **changes: Any) -> Answer:
        command = NodeCommand(argv, **changes)
        return call([self.host], command, timeout_s, state_dir=self.state_dir)["n1"]

    def accept_key(self) -> None:
        ssh.write_config([self.host], self.state_dir)
        key = self.host_key.with_suffix(".pub").read_text()
        ssh.known_hosts_path(self.state_dir).write_text(f"[127.0.0.1]:{self.host.port} {key}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


@contextlib.contextmanager
def running_sshd(directory: Path, port: int) -> Iterator[None]:
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert program
    made = None
    if os.geteuid() == 0 and not Path("/run/sshd").exists():  # where sshd drops its privileges to
        made = Path("/run/sshd")
        made.mkdir(mode=0o755)
    config = directory / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin yes\nLogLevel ERROR\n"
    )
    log = (directory / "sshd.log").open("wb")
    server = subprocess.Popen([program, "-D", "-e", "-f", config], stderr=log, stdin=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            if server.poll() is not None:
                pytest.fail((directory / "sshd.log").read_text())
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait(10)
        log.close()
        if made:
            made.rmdir()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    needs("sshd", "ssh-keygen")
    monkeypatch.setenv("HOME", str(tmp_path))  # neither keys nor known hosts of whoever runs this
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for name in ("host_key", "user_key", "other_key"):
        make_key(tmp_path / name)
    (tmp_path / "authorized_keys").write_text((tmp_path / "user_key.pub").read_text())
    port = free_port()
    host = make_host(
        tmp_path / "root",
        connection="ssh",
        port=port,
        user=getpass.getuser(),
        variables={"ansible_ssh_private_key_file": str(tmp_path / "user_key")},
    )
    found = Server(tmp_path, host, tmp_path / "state")
    with running_sshd(tmp_path, port):
        yield found


# --- over ssh ------------------------------------------------------------------------------------


def test_a_known_node_answers_with_nothing_installed_and_keeps_nothing(server: Server) -> None:
    server.accept_key()
    before = set(Path("/tmp").iterdir())
    answer = server.call(["facts", "--root", server.host.root])
    assert answer.error is None, answer
    assert answer.json()["cpu"]["usable"] >= 1
    assert not [path for path in set(Path("/tmp").iterdir()) - before if "raytools" in path.name]
    assert not Path(server.host.root).exists()


def test_an_unknown_host_key_is_rejected_and_not_remembered(server: Server) -> None:
    answer = server.call(["facts"])
    assert answer.exit_code is None
    assert "the host key is not known" in str(answer.error)
    assert "StrictHostKeyChecking=ask" in str(answer.error)
    assert ssh.known_hosts_path(server.state_dir).read_text() == ""


def test_the_command_that_the_message_gives_accepts_the_key(server: Server) -> None:
    needs("ssh")
    ssh.write_config([server.host], server.state_dir)
    # with `ask` and no terminal ssh refuses; accept-new is what a person's `yes` amounts to
    line = [
        "ssh",
        "-F",
        str(ssh.config_path(server.state_dir)),
        "-o",
        "StrictHostKeyChecking=accept-new",
        "n1",
    ]
    subprocess.run([*line, "true"], check=True, timeout=20)
    assert server.call(["facts"]).error is None


def test_a_changed_host_key_is_rejected_and_named(server: Server) -> None:
    server.accept_key()
    key = (server.directory / "other_key.pub").read_text()
    ssh.known_hosts_path(server.state_dir).write_text(f"[127.0.0.1]:{server.host.port} {key}")
    answer = server.call(["facts"])
    assert "the host key has changed" in str(answer.error)
    assert f"ssh-keygen -R '[127.0.0.1]:{server.host.port}'" in str(answer.error)


def test_a_key_the_node_does_not_take_is_said(server: Server) -> None:
    server.accept_key()
    server.host = dataclasses.replace(
        server.host, variables={"ansible_ssh_private_key_file": str(server.directory / "other_key")}
    )
    answer = server.call(["facts"])
    assert "refused to log" in str(answer.error)
    assert "ansible_ssh_private_key_file" in str(answer.error)


def test_a_port_where_nothing_listens_is_said(server: Server) -> None:
    server.host = dataclasses.replace(server.host, port=free_port())
    answer = server.call(["facts"])
    assert "nothing listens there" in str(answer.error)


def test_something_that_is_no_sshd_and_says_nothing_is_given_up_in_time(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server.host = dataclasses.replace(server.host, port=silent.getsockname()[1])
        began = time.monotonic()
        answer = server.call(["facts"], timeout_s=2)
        assert time.monotonic() - began < 6
    assert answer.exit_code is None
    assert "did not greet as an ssh server within 2 s" in str(answer.error)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_then_end(connection: socket.socket) -> None:
    connection.recv(100)


def _greet_then_reset(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-refuses\r\n")
    connection.recv(100)
    _reset(connection)


@pytest.mark.parametrize("before_closing", [_reset, _read_then_end, _greet_then_reset])
def test_something_that_hangs_up_before_a_session_begins_is_told_so(
    server: Server, before_closing: Callable[[socket.socket], None]
) -> None:
    def hang_up(listening: socket.socket) -> None:
        with listening.accept()[0] as connection:
            before_closing(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server.host = dataclasses.replace(server.host, port=listening.getsockname()[1])
        threading.Thread(target=hang_up, args=[listening], daemon=True).start()
        answer = server.call(["facts"], timeout_s=5)
    assert answer.exit_code is None
    assert "closed the connection before a session could begin" in str(answer.error)


@contextlib.contextmanager
def interrupted(begun: Path | None = None) -> Iterator[None]:
    """Ctrl-C when a file is there, or a second after the block has begun; it is answered within three."""
    at = []

    def interrupt() -> None:
        deadline = time.monotonic() + 20
        time.sleep(1)
        while begun and not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        yield
    assert time.monotonic() - at[0] < 3


def test_ctrl_c_does_not_wait_for_a_connection_that_is_being_made(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server.host = dataclasses.replace(server.host, port=silent.getsockname()[1])
        with interrupted():
            server.call(["facts"])


def test_ctrl_c_does_not_wait_for_a_command_which_its_node_ends_in_time(server: Server) -> None:
    server.accept_key()
    install_python(server, "exec sleep 60")
    with interrupted(Path(server.host.root, "pid")):
        server.call(["facts"], timeout_s=8, python="environment")
    wait_for_end(server, within_s=12)


def test_ctrl_c_ends_a_command_without_ssh(tmp_path: Path) -> None:
    python, pid = tmp_path / "python", tmp_path / "pid"
    python.write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 60\n")
    python.chmod(0o755)
    with interrupted(pid):
        call([make_host(tmp_path, python=str(python))], NodeCommand(["facts"], python="installed"), 50)
    assert not Path(f"/proc/{int(pid.read_text())}").exists()


def test_a_slow_command_is_ended_on_the_node_too(server: Server) -> None:
    server.accept_key()
    install_python(server, "exec sleep 60")
    began = time.monotonic()
    answer = server.call(["facts"], timeout_s=3, python="environment")
    assert "no answer within 3 s" in str(answer.error)
    assert time.monotonic() - began < 6
    wait_for_end(server)


def install_python(server: Server, script: str) -> None:
    """Provisions the node with a `Python` that is a shell script; it notes its pid."""
    root = Path(server.host.root)
    root.mkdir()
    python = root / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {root}/pid\n{script}\n")
    python.chmod(0o755)
    (root / "node.json").write_text(json.dumps({"python": str(python), "toolkit": str(root)}))


def wait_for_end(server: Server, within_s: float = 5) -> None:
    pid = int(Path(server.host.root, "pid").read_text())
    deadline = time.monotonic() + within_s
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the command lives on"
        time.sleep(0.05)


def test_a_node_without_python_is_said(server: Server) -> None:
    server.accept_key()
    server.host = dataclasses.replace(server.host, python="/nonexistent/python3")
    answer = server.call(["facts"])
    assert "there is no /nonexistent/python3" in str(answer.error)


def test_a_node_that_answers_garbage_is_said(server: Server) -> None:
    server.accept_key()
    server.host = dataclasses.replace(server.host, python="echo")
    answer = server.call(["facts"])
    assert "did not start" in str(answer.error)
    assert "import sys" in str(answer.error)


def test_what_a_login_script_prints_is_not_taken_for_the_answer(server: Server) -> None:
    server.accept_key()
    noisy = server.directory / "noisy-python"
    noisy.write_text(f'#!/bin/sh\necho "Welcome to n1!"\nexec {sys.executable} "$@"\n')
    noisy.chmod(0o755)
    server.host = dataclasses.replace(server.host, python=str(noisy))
    assert server.call(["facts"]).json()["schema"] == "raytools.facts/1"


def test_ssh_common_args_of_the_inventory_are_followed(server: Server) -> None:
    server.accept_key()
    port = server.host.port
    server.host = dataclasses.replace(
        server.host,
        port=None,
        variables={
            **server.host.variables,
            "ansible_ssh_common_args": f"-o Port={port} -o 'ConnectTimeout 5'",
        },
    )
    assert server.call(["facts"]).error is None


def test_nodes_are_asked_in_parallel_and_one_that_is_down_disturbs_nobody(server: Server) -> None:
    server.accept_key()
    down = dataclasses.replace(server.host, name="n2", port=free_port())
    answers = call([server.host, down], NodeCommand(["facts"]), 20, state_dir=server.state_dir)
    assert list(answers) == ["n1", "n2"]
    assert answers["n1"].error is None
    assert "nothing listens" in str(answers["n2"].error)


def test_a_file_arrives_whole_with_its_mode(server: Server) -> None:
    server.accept_key()
    source = server.directory / "big"
    source.write_bytes(os.urandom(3 << 20))
    target = server.directory / "arrived"
    answer = put_file(server.host, source, str(target), 0o640, state_dir=server.state_dir)
    assert answer.error is None
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o640
    failed = put_file(server.host, source, "/nonexistent/x", state_dir=server.state_dir)
    assert "cannot write /nonexistent/x" in str(failed.error)


def test_output_is_streamed_line_by_line_and_ends_with_the_controller(server: Server) -> None:
    server.accept_key()
    install_python(server, "read line\necho got $line\nexec sleep 60")
    lines: list[str] = []

    def stop_at_first(line: str) -> None:
        lines.append(line)
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C

    command = NodeCommand(["workload"], stdin="request\n", python="installed")
    with pytest.raises(KeyboardInterrupt):
        stream(server.host, command, stop_at_first, state_dir=server.state_dir)
    assert lines == ["got request"]
    wait_for_end(server)


# --- without ssh ---------------------------------------------------------------------------------


def test_a_local_node_is_asked_without_ssh(tmp_path: Path) -> None:
    answer = call([make_host(tmp_path)], NodeCommand(["facts"]), 20)["n1"]
    assert answer.json()["python"]["executable"] == sys.executable


def test_a_node_that_is_not_provisioned_says_so(tmp_path: Path) -> None:
    answer = call([make_host(tmp_path)], NodeCommand(["ray-view"], python="environment"), 20)["n1"]
    assert "not provisioned" in str(answer.error)


def test_a_command_that_fails_keeps_its_exit_code_and_words(tmp_path: Path) -> None:
    answer = call([make_host(tmp_path)], NodeCommand(["no-such-command"]), 20)["n1"]
    assert answer.error is None
    assert answer.exit_code == 2
    assert "expected one of" in answer.stderr


@pytest.mark.parametrize("python", ["/nonexistent/python"])
def test_a_local_interpreter_that_is_not_there_is_said(tmp_path: Path, python: str) -> None:
    host = make_host(tmp_path, python=python)
    answer = call([host], NodeCommand(["facts"], python="environment"), 20)["n1"]
    assert "cannot be started" in str(answer.error)


def test_a_streamed_local_command_sees_only_its_request_and_no_neighbours(tmp_path: Path) -> None:
    """PYTHONPATH of the environment's Python may not lead to the controller's other packages."""
    (tmp_path / "node.json").write_text(json.dumps({"python": sys.executable, "toolkit": str(tmp_path)}))
    lines: list[str] = []
    answer = stream(make_host(tmp_path), NodeCommand(["facts"], python="environment"), lines.append)
    assert answer.exit_code == 0
    assert json.loads(lines[0])["schema"] == "raytools.facts/1"


def test_becoming_another_user_that_needs_a_password_is_said_and_never_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sudo = tmp_path / "sudo"  # says what sudo 1.9.13 -n says
    sudo.write_text("#!/bin/sh\n[ $1 = -n ] && echo 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    host = make_host(tmp_path, become=True, variables={"ansible_become_user": "nobody"})
    answer = call([host], NodeCommand(["facts"]), 10)["n1"]
    assert "becoming another user failed (sudo: a password is required)" in str(answer.error)
    assert "NOPASSWD" in str(answer.error)


def test_becoming_another_user_runs_the_command_as_that_user(tmp_path: Path) -> None:
    needs("sudo")
    if subprocess.run(["sudo", "-n", "-u", "nobody", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not become nobody without a password")
    python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(p).exists()), None)
    if python is None:
        pytest.skip("no Python here that user nobody may run (/usr/bin/python3)")
    host = make_host(tmp_path, become=True, python=python, variables={"ansible_become_user": "nobody"})
    assert call([host], NodeCommand(["facts"]), 20)["n1"].json()["user"]["name"] == "nobody"
