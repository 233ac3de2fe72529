"""ssh to nodes: one generated configuration and known_hosts per cluster, one checked session per call.

fabric opens the connections (keys, agent, ProxyJump, ProxyCommand); it would accept unknown host keys and
does not know Ansible's variables, so both are settled here. Ansible uses the same file by `ssh -F`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from raytools.errors import TransportError

if TYPE_CHECKING:
    from raytools.inventory import Host

_USER_CONFIG = Path("~/.ssh/config")
_USER_KNOWN_HOSTS = Path("~/.ssh/known_hosts")
# Times the wait for a connection: who has logged us in is alive, and on a busy node PAM and logind take long.
_SESSION_PATIENCE = 3
_FROM_USER = f"# From {_USER_CONFIG}:\n"
# What paramiko's threads meet is raised here, too, as one sentence; where nobody has set up logging, Python
# would print their tracebacks on the screen as well.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


def config_path(state_dir: Path) -> Path:
    """The generated ssh_config: `<state_dir>/ssh/config`."""
    return state_dir / "ssh" / "config"


def known_hosts_path(state_dir: Path) -> Path:
    """The cluster's own known_hosts: `<state_dir>/ssh/known_hosts`."""
    return state_dir / "ssh" / "known_hosts"


def write_config(hosts: Sequence[Host], state_dir: Path) -> Path:
    """Writes the cluster's ssh_config, unless it serves these hosts, and an empty known_hosts if needed.

    What serves all hosts also serves one: a call to the head does not take the others away from another call
    that goes on beside it.

    Args:
        hosts: of the inventory; local ones are left out.
        state_dir: the project's directory for local state.
    """
    path = config_path(state_dir)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    known_hosts_path(state_dir).touch(mode=0o600)
    text = config_text(hosts, state_dir, _user_config())
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or not serves(path.read_text(), text):
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as beside:
                beside.write(text)
            Path(beside.name).replace(path)  # mode 0600 from the temporary file
    return path


def serves(text: str, wanted: str) -> bool:
    """Whether an ssh_config says all that another one says, of the same hosts or of more."""
    mark = _FROM_USER.strip()
    own, _, users = text.partition(mark)
    wanted_own, _, wanted_users = wanted.partition(mark)
    said = [_names_and_settings(block) for block in own.split("\n\n")]
    return users == wanted_users and all(
        any(settings == others and names <= of for of, others in said)
        for names, settings in map(_names_and_settings, wanted_own.split("\n\n"))
    )


def _names_and_settings(block: str) -> tuple[set[str], list[str]]:
    first, *settings = block.strip().split("\n")
    return set(first.split()), settings


def _user_config() -> str:
    try:
        return _USER_CONFIG.expanduser().read_text()
    except OSError:
        return ""


def config_text(hosts: Sequence[Host], state_dir: Path, user_config: str) -> str:
    """The ssh_config: checking of host keys, a block per host, defaults, then the user's own configuration.

    ssh and paramiko both take the first value they find: nothing outranks the checking of host keys, and
    what the inventory says outranks the rest.
    """
    remote = [host for host in hosts if host.connection == "ssh"]
    blocks = ["# Written by raytools from the inventory; changes are overwritten."]
    # Ansible calls ssh with the address, not with the name
    names = " ".join(sorted({name for host in remote for name in (host.name, host.address)}))
    files = " ".join(_quoted(str(path)) for path in _known_hosts(state_dir))
    if remote:
        blocks.append(_block(names, [("StrictHostKeyChecking", "yes"), ("UserKnownHostsFile", files)]))
    blocks += [_block(host.name, _settings(host, user_config)) for host in remote]
    if remote:
        alive = [("ServerAliveInterval", "15"), ("ServerAliveCountMax", "4")]
        blocks.append(_block(names, [("BatchMode", "yes"), *alive]))
    if user_config.strip():
        blocks.append(f"{_FROM_USER}{user_config.strip()}")
    return "\n\n".join(blocks) + "\n"


def _block(names: str, settings: Sequence[tuple[str, str]]) -> str:
    return "\n".join([f"Host {names}", *(f"    {key} {value}" for key, value in settings)])


def _settings(host: Host, user_config: str) -> list[tuple[str, str]]:
    """What one host's block says: the inventory first, then the user's settings for that address."""
    own: list[tuple[str, str]] = []
    if host.port:
        own.append(("Port", str(host.port)))
    if host.user:
        own.append(("User", host.user))
    key = host.variables.get("ansible_ssh_private_key_file") or host.variables.get("ansible_private_key_file")
    if key:
        own.append(("IdentityFile", _quoted(str(Path(str(key)).expanduser()))))
    for name in ("ansible_ssh_common_args", "ansible_ssh_extra_args"):
        own += ssh_options(str(host.variables.get(name) or ""))
    inherited = _lookup(user_config, host.address)
    own.append(("HostName", str(inherited.pop("hostname", host.address))))
    given = {name.lower() for name, _ in own}
    for name, value in inherited.items():
        if name not in given:
            own += [(name, one) for one in (value if isinstance(value, list) else [str(value)])]
    return own


def _lookup(user_config: str, address: str) -> dict[str, Any]:
    """What the user's configuration says for an address that may be one of its aliases."""
    if not user_config.strip():
        return {}
    from paramiko import SSHConfig, SSHException
    from paramiko.ssh_exception import ConfigParseError

    try:
        return dict(SSHConfig.from_text(user_config).lookup(address))
    except (SSHException, ConfigParseError) as error:
        raise TransportError(f"{_USER_CONFIG} cannot be read: {error}") from error


def ssh_options(arguments: str) -> list[tuple[str, str]]:
    """The ssh_config lines that command-line options such as `-o ProxyJump=gate -i key` stand for.

    Raises:
        TransportError: an option that has no counterpart.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-o", action="append", default=[], dest="options")
    for letter, name in (("-J", "ProxyJump"), ("-i", "IdentityFile"), ("-p", "Port"), ("-l", "User")):
        parser.add_argument(letter, dest=name)
    for letter in ("-4", "-6", "-A", "-C", "-q", "-T", "-x"):
        parser.add_argument(letter, action="store_true", dest=letter)
    try:
        found, unknown = parser.parse_known_args(shlex.split(arguments))
    except (argparse.ArgumentError, ValueError) as error:
        raise TransportError(f"ansible_ssh_common_args cannot be read: {error}") from error
    if unknown:
        raise TransportError(
            f"ansible_ssh_common_args has {unknown[0]}, which raytools does not know", expected="-o Key=Value"
        )
    lines = []
    for option in found.options:
        name, _, value = option.strip().replace("=", " ", 1).partition(" ")
        lines.append((name, value.strip()))
    lines += [
        (name, str(v))
        for name in ("ProxyJump", "IdentityFile", "Port", "User")
        if (v := getattr(found, name))
    ]
    switches = {
        "-4": ("AddressFamily", "inet"),
        "-6": ("AddressFamily", "inet6"),
        "-A": ("ForwardAgent", "yes"),
    }
    return lines + [pair for letter, pair in switches.items() if getattr(found, letter)]


def _known_hosts(state_dir: Path) -> list[Path]:
    """The cluster's file first; hosts the user has met by hand are known too."""
    return [known_hosts_path(state_dir), _USER_KNOWN_HOSTS.expanduser()]


def _quoted(value: str) -> str:
    return f'"{value}"' if " " in value else value


# --- one session ---


class SshSession:
    """A command on a node. Closing it closes the connection; the node ends the command by itself."""

    def __init__(self, connection: Any, channel: Any) -> None:
        self._connection, self._channel = connection, channel
        self.stdin: IO[bytes] = channel.makefile_stdin("wb")
        self.stdout: IO[bytes] = channel.makefile("rb")
        self.stderr: IO[bytes] = channel.makefile_stderr("rb")

    def wait(self, timeout_s: float) -> int | None:
        if not self._channel.status_event.wait(max(timeout_s, 0)):
            return None
        return int(self._channel.exit_status)  # -1: ended by a signal, or the connection broke

    def close(self) -> None:
        with contextlib.suppress(EOFError, OSError):  # the connection is gone, or another thread closes it
            self._channel.close()
        self._connection.close()


def open_session(host: Host, line: str, connect_wait_s: float, state_dir: Path) -> SshSession:
    """Connects and starts one command.

    Args:
        host: an ssh host whose block `write_config` has written.
        line: for the login shell there.
        connect_wait_s: for the TCP connection, the key exchange and the log-in, each; three times that for
            the session.
        state_dir: as for `write_config`.

    Raises:
        TransportError: one sentence: who, what was found, what to do.
    """
    import paramiko

    began, connection = time.monotonic(), None
    try:
        connection = _connection(host, connect_wait_s, state_dir)
        connection.open()
        channel = connection.transport.open_session(timeout=_SESSION_PATIENCE * connect_wait_s)
        channel.exec_command(line)
    except (OSError, EOFError, paramiko.SSHException, ValueError) as error:
        was_closed = time.monotonic() - began < connect_wait_s
        transport = connection and connection.client.get_transport()
        has_greeted = bool(transport and transport.remote_version)
        sentence = _sentence(host, error, connect_wait_s, was_closed, state_dir, has_greeted=has_greeted)
        raise TransportError(sentence) from error
    return SshSession(connection, channel)


def _connection(host: Host, connect_wait_s: float, state_dir: Path) -> Any:
    from fabric import Config, Connection

    settings = Config(runtime_ssh_path=str(config_path(state_dir)))
    wait = {
        "banner_timeout": connect_wait_s,
        "auth_timeout": connect_wait_s,
        "channel_timeout": _SESSION_PATIENCE * connect_wait_s,
    }
    connection = Connection(
        host.name, config=settings, connect_timeout=max(1, round(connect_wait_s)), connect_kwargs=wait
    )
    if str(connection.ssh_config.get("identitiesonly", "no")).lower() == "yes":
        connection.connect_kwargs |= {"allow_agent": False, "look_for_keys": False}
    checked: Any = connection
    while checked is not None and not isinstance(checked, str):  # a gateway is a connection or a command
        _check_host_keys(checked.client, state_dir)
        checked = checked.gateway
    return connection


def _check_host_keys(client: Any, state_dir: Path) -> None:
    """Accept only keys that are known: fabric's own default accepts any."""
    from paramiko import RejectPolicy

    client.set_missing_host_key_policy(RejectPolicy())
    for path in [*_known_hosts(state_dir), Path("/etc/ssh/ssh_known_hosts")]:
        if path.is_file() and os.access(path, os.R_OK):
            client.load_system_host_keys(str(path))


def _sentence(
    host: Host, error: Exception, waited_s: float, was_closed: bool, state_dir: Path, *, has_greeted: bool
) -> str:
    """Turns a library's exception into what to do about it.

    Args:
        host: the one that could not be talked to.
        error: of paramiko, fabric or the system.
        waited_s: the limit of each step.
        was_closed: it ended before that limit: paramiko's text for a missing greeting is the same for both,
            followed by the system's word where the other side reset the connection.
        state_dir: as for `write_config`.
        has_greeted: it called itself an ssh server. paramiko may go on to log in without: it waits as long
            for both, and the log-in then finds no session.
    """
    from paramiko import AuthenticationException, BadHostKeyException, PasswordRequiredException
    from paramiko.ssh_exception import NoValidConnectionsError

    port = host.port or 22
    where = f"{host.name} ({host.address} port {port})"
    known = known_hosts_path(state_dir)
    entry = host.address if port == 22 else f"[{host.address}]:{port}"
    if isinstance(error, BadHostKeyException):
        return (
            f"{where}: the host key has changed, which an impostor would cause as well. If the machine was "
            f"reinstalled: ssh-keygen -R {shlex.quote(entry)} -f {_file_of(entry, state_dir)}, "
            "then accept its new key"
        )
    if "not found in known_hosts" in str(error):
        return (
            f"{where}: the host key is not known. Compare its fingerprint and accept it: "
            f"ssh -F {config_path(state_dir)} -o StrictHostKeyChecking=ask -o BatchMode=no {host.name} true "
            f"(or append it to {known})"
        )
    if isinstance(error, PasswordRequiredException):
        return f"{where}: the private key is encrypted and no agent holds it. ssh-add it first"
    text = str(error)
    no_session = text.startswith("No existing session")
    if text == "Authentication timeout." or (no_session and has_greeted and not was_closed):
        return (
            f"{where}: an ssh server greeted and did not finish the log-in within {waited_s:.0f} s. "
            "It is overloaded, or waits for a name service (UseDNS, PAM): see uptime there"
        )
    cut_off = isinstance(error, EOFError | ConnectionResetError | BrokenPipeError) or "saw EOF" in text
    if isinstance(error, AuthenticationException) and not cut_off:
        return (
            f"{where}: the node refused to log {host.user or 'this user'} in. Check ansible_user and "
            f"ansible_ssh_private_key_file, or: ssh-copy-id -F {config_path(state_dir)} {host.name}"
        )
    if isinstance(error, socket.gaierror):
        return f"{where}: the name {host.address} cannot be resolved. Set ansible_host in the inventory"
    no_greeting = no_session or text.startswith("Error reading SSH protocol banner")
    if cut_off or (no_greeting and was_closed):
        return (
            f"{where}: what listens there closed the connection before a session could begin. "
            "Is it an ssh server (ansible_port), and does it allow more connections (MaxStartups) and "
            "this address?"
        )
    if no_greeting:
        return (
            f"{where}: something listens there and did not greet as an ssh server within {waited_s:.0f} s. "
            "Is ansible_port right, and the node not overloaded?"
        )
    if "Timeout opening channel" in text:
        return (
            f"{where}: logged in, but it opened no session within {_SESSION_PATIENCE * waited_s:.0f} s. "
            "It is overloaded, or its logind hangs: see uptime and journalctl -u systemd-logind there"
        )
    if isinstance(error, TimeoutError):
        return f"{where}: no answer within {waited_s:.0f} s. Is it up, and does a firewall let ssh through?"
    if isinstance(error, NoValidConnectionsError | ConnectionRefusedError):
        return f"{where}: nothing listens there. Is sshd running, and is ansible_port right?"
    return f"{where}: ssh failed ({text.strip() or type(error).__name__})"


def _file_of(entry: str, state_dir: Path) -> Path:
    """The known_hosts file that holds an entry, as far as it is not hashed."""
    for path in _known_hosts(state_dir):
        if path.is_file() and entry in path.read_text(errors="replace"):
            return path
    return known_hosts_path(state_dir)
