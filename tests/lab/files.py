"""What a lab is for Ansible, raytools and ssh: the texts of its files. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raytools.config import ClusterConfig
from tests.lab.hosts import Endpoint, Host

SSH_PORT = 22
_OF_ONE_HOST = ("ansible_host", "raytools_address")  # even if there is only one


class Targets(NamedTuple):
    """The make targets that start and end a kind of lab."""

    up: str
    down: str


def inventory_header(targets: Targets) -> str:
    """How a lab's own inventory begins: no other file is overwritten or removed."""
    return f"# Written by `make {targets.up}` for the lab"


def inventory_text(
    lab: str, hosts: Sequence[Host], endpoints: Mapping[str, Endpoint], addresses: Mapping[str, str],
    key: Path, targets: Targets,
) -> str:  # fmt: skip
    """The inventory: the first host is the head; what all hosts share is said once.

    Args:
        lab: its name.
        hosts: all of them.
        endpoints: where this machine reaches them.
        addresses: where they reach each other.
        key: the private key to log in with.
        targets: what made the lab, and what ends it.
    """
    each = {host.name: _variables(host, endpoints[host.name], addresses[host.name]) for host in hosts}
    common = {
        name: value
        for name, value in each[hosts[0].name].items()
        if name not in _OF_ONE_HOST and all(variables.get(name) == value for variables in each.values())
    }
    common = {**common, "ansible_ssh_private_key_file": str(key)}
    root = _root_without_root(hosts)
    if root:
        common["raytools_root"] = root
    header = f"{inventory_header(targets)} {lab}; `make {targets.down} LAB={lab}` removes it."
    lines = [header, "all:", "  vars:"]
    lines += [f"    {name}: {_scalar(value)}" for name, value in common.items()]
    for group, members in (("head", hosts[:1]), ("workers", hosts[1:])):
        lines.append(f"{group}:")
        lines.append("  hosts:" if members else "  hosts: {}")
        for host in members:
            own = {name: value for name, value in each[host.name].items() if name not in common}
            inside = ", ".join(f"{name}: {_scalar(value)}" for name, value in own.items())
            lines.append(f"    {host.name}: {{{inside}}}")
    return "\n".join(lines) + "\n"


def _variables(host: Host, endpoint: Endpoint, address: str) -> dict[str, Any]:
    variables: dict[str, Any] = {"ansible_host": endpoint.address, "ansible_user": host.user}
    if endpoint.port != SSH_PORT:
        variables["ansible_port"] = endpoint.port
    if address != endpoint.address:
        variables["raytools_address"] = address
    variables["ansible_become"] = host.becomes_root
    return {**variables, **host.variables}


def _root_without_root(hosts: Sequence[Host]) -> str | None:
    """Where raytools lives if a host has a plain user only: the path is the same on every host."""
    plain = sorted({host.user for host in hosts if not host.becomes_root})
    if not plain or any("raytools_root" in host.variables for host in hosts):
        return None
    return "/root/raytools" if plain[0] == "root" else f"/home/{plain[0]}/raytools"


def _scalar(value: Any) -> str:
    if (
        isinstance(value, str)
        and value
        and value.replace("/", "").replace("_", "").replace("-", "").isalpha()
    ):
        return value if value not in ("yes", "no", "true", "false", "on", "off", "null") else f'"{value}"'
    if isinstance(value, str) and value.count(".") == 3 and value.replace(".", "").isdigit():
        return value
    return json.dumps(value)  # JSON is YAML


# Importing takes an emulated processor ten times as long, and Ray's parts all start at once.
_DEFAULT_PIP = ClusterConfig().environment.pip
_PIP = [
    pin.replace("ray[default,tune]", "ray[client,tune]").replace("[lightgbm,ray]", "[lightgbm]")
    for pin in _DEFAULT_PIP
]
_EMULATED = f"""\
environment:
  name: emulated                      # without Ray's dashboard, whose modules take a minute to import
  pip: {json.dumps(_PIP)}
ray:
  dashboard: {{enabled: false}}
  log_to_driver: false                # one import less at the same time
"""


def cluster_text(lab: str, storage: str, targets: Targets, *, emulated: bool = False) -> str:
    """The lab's cluster.yaml: small hosts.

    Args:
        lab: its name.
        storage: what the key `storage` says, in one line.
        targets: what made the lab.
        emulated: its processors are ten times slower than real ones.
    """
    return (
        f"# Written by `make {targets.up}`: the lab's cluster.yaml. What is not said here has the default.\n"
        f"cluster: {lab}\n"
        f"storage: {storage}\n"
        f"nodes:\n"
        f"  system_reserved: {{memory: 1GiB}}   # the hosts are small\n"
        f"doctor:\n"
        f"  waive: [{{code: RT107, reason: the hosts share the CPUs of the machine that made them}}]\n"
        + (_EMULATED if emulated else "")
    )


def hosts_text(name: str, addresses: Mapping[str, str]) -> str:
    """One host's /etc/hosts: all hosts of the lab, itself included."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {other}" for other, address in addresses.items()]
    return f"# the hosts of the lab; this is {name}\n" + "\n".join(lines) + "\n"


def ssh_config_text(
    hosts: Sequence[Host], endpoints: Mapping[str, Endpoint], key: Path, known_hosts: Path, targets: Targets
) -> str:
    """For `ssh -F`: log in by name, as the user of the inventory."""
    blocks = [f"# Written by `make {targets.up}`."]
    for host in hosts:
        address, port = endpoints[host.name]
        lines = [f"Host {host.name}", f"    HostName {address}", f"    User {host.user}"]
        lines += [f"    Port {port}"] if port != SSH_PORT else []
        blocks.append("\n".join(lines))
    # the greeting counts, and an emulated sshd takes long for it
    common = [f'IdentityFile "{key}"', "IdentitiesOnly yes", "BatchMode yes", "ConnectTimeout 60"]
    common += ["StrictHostKeyChecking yes", f'UserKnownHostsFile "{known_hosts}"']
    blocks.append("\n    ".join(["Host *", *common]))
    return "\n\n".join(blocks) + "\n"
