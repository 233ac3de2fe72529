"""The hosts of the cluster, from Ansible's own inventory.

The inventory is read by `ansible-inventory` in a process of its own: only Ansible knows all its formats,
group variables and plugins, and it is under the GPL, so it is run, never imported.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from raytools.config import ClusterConfig, merged
from raytools.errors import ConfigError
from raytools.yaml_source import (
    KeyPath,
    Problem,
    Source,
    SourceError,
    describe,
    printable,
    read_source,
    shown_path,
)

DEFAULT_ROOT = "/opt/raytools"
DEFAULT_SERVICE_USER = "ray"
CONTROLLER_PYTHON = "{{ ansible_playbook_python }}"
_TIMEOUT_S = 60
_WHOLE = "(inventory)"


@dataclass(frozen=True)
class Host:
    """One machine as the inventory describes it.

    `address` is where to connect to; `cluster_address` is where the other nodes reach it, if the
    inventory says so, else plan.py takes the primary address of its facts. `python` is None where
    Ansible would look for one. `variables` are all of Ansible's (secrets too: never print them),
    `overrides` the `raytools:` one.
    """

    name: str
    role: Literal["head", "worker"]
    connection: Literal["local", "ssh"]
    address: str
    cluster_address: str | None
    port: int | None
    user: str | None
    root: str
    python: str | None
    become: bool
    variables: Mapping[str, Any] = field(repr=False)
    overrides: Mapping[str, Any]

    @property
    def service_user(self) -> str | None:
        """Who runs Ray where raytools becomes root: an account of its own. None: whoever connects."""
        return str(self.variables.get("raytools_user") or DEFAULT_SERVICE_USER) if self.become else None


@dataclass(frozen=True)
class Inventory:
    """All hosts of the cluster, the head first; `ignored` hosts are in neither group."""

    path: Path
    hosts: tuple[Host, ...]
    ignored: tuple[str, ...] = ()

    @property
    def head(self) -> Host:
        """The one host of group `head`."""
        return self.hosts[0]

    @property
    def workers(self) -> tuple[Host, ...]:
        """The hosts of group `workers`, in the inventory's order."""
        return self.hosts[1:]

    def host(self, name: str) -> Host:
        """One host by name.

        Raises:
            ConfigError: the inventory has no such host.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        names = ", ".join(host.name for host in self.hosts)
        raise _error(self.path, f"hosts.{name}", "no such host", f"one of {names}")


def load_inventory(path: Path | str) -> Inventory:
    """Asks Ansible for the hosts of an inventory.

    Args:
        path: an inventory file, script or directory.

    Raises:
        ConfigError: Ansible cannot read it, or it does not describe one head and its workers.
    """
    path = Path(path).absolute()
    try:
        path.stat()
    except (OSError, ValueError) as error:
        found = (
            "no such file"
            if isinstance(error, FileNotFoundError)
            else f"a path that cannot be read ({error})"
        )
        raise _error(
            path, _WHOLE, printable(found), "an inventory with the groups head and workers"
        ) from None
    return parse_inventory(path, _ask_ansible(path))


def parse_inventory(path: Path, listing: Mapping[str, Any]) -> Inventory:
    """Hosts from the output of `ansible-inventory --list`. Pure.

    Raises:
        ConfigError: as load_inventory.
    """
    heads = _members(listing, "head")
    workers = _members(listing, "workers")
    if len(heads) != 1:
        found = f"{len(heads)} hosts ({', '.join(heads)})" if heads else "no host"
        raise _error(path, "head", found, "exactly one host in group head")
    if heads[0] in workers:
        raise _error(path, f"hosts.{heads[0]}", "a host in both groups", "head or workers")
    all_variables = listing.get("_meta", {}).get("hostvars", {})
    hosts = [_host(path, heads[0], "head", all_variables.get(heads[0], {}))]
    hosts += [_host(path, name, "worker", all_variables.get(name, {})) for name in workers]
    _check_addresses(path, hosts)
    known = {host.name for host in hosts}
    others = tuple(name for name in dict.fromkeys(_members(listing, "all")) if name not in known)
    return Inventory(path, tuple(hosts), others)


def host_configs(config: ClusterConfig, inventory: Inventory) -> dict[str, ClusterConfig]:
    """What holds for each host: its `raytools:` variable merged over cluster.yaml.

    Raises:
        ConfigError: with the inventory as the file and `hosts.NAME.raytools.KEY` as the key.
    """
    file = shown_path(inventory.path)
    configs: dict[str, ClusterConfig] = {}
    problems: list[str] = []
    for host in inventory.hosts:
        if not host.overrides:
            configs[host.name] = config
            continue
        try:
            configs[host.name] = merged(
                config,
                host.overrides,
                file=file,
                key=f"hosts.{host.name}.raytools",
                line=_LineFinder(inventory.path, host.name),
            )
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return configs


# -------------------------------------------------------------------------------------- asking Ansible


def _ask_ansible(path: Path) -> Mapping[str, Any]:
    environment = {
        **os.environ,
        "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",  # its default is an empty list and code 0
        "ANSIBLE_NOCOLOR": "true",
        "ANSIBLE_FORCE_COLOR": "false",
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
    }
    command = [sys.executable, "-m", "ansible", "inventory", "--list", "-i", str(path)]
    try:
        # Ansible takes ansible.cfg from its working directory
        answer = subprocess.run(
            command,
            cwd=project_directory(path),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        found = f"no answer of ansible-inventory in {_TIMEOUT_S} s"
        raise _error(path, _WHOLE, found, "an inventory that lists at once") from None
    if answer.returncode != 0:
        found = f"what Ansible refuses ({_gist(answer.stderr)})"
        raise _error(path, _WHOLE, found, "an inventory Ansible can read")
    try:
        listing: Mapping[str, Any] = json.loads(answer.stdout)
    except ValueError:
        raise _error(path, _WHOLE, "an answer of Ansible that is not JSON", "its inventory as JSON") from None
    return listing


def _gist(stderr: str) -> str:
    """Ansible's own reason in one line: the innermost cause it names, without labels."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    labels = ("[ERROR]: ", "[WARNING]: ", "ERROR! ")
    for wanted in ("YAML parsing failed", "No module named", "[ERROR]", "ERROR!"):
        for line in lines:
            if wanted in line:
                text = line[line.index(wanted) :] if wanted == "YAML parsing failed" else line
                for label in labels:
                    text = text.removeprefix(label)
                return text.rstrip(".")
    return lines[-1] if lines else "it gave no reason"


def project_directory(inventory_path: Path) -> Path:
    """The directory a relative raytools_root is below: the parent of the inventory's directory."""
    directory = inventory_path if inventory_path.is_dir() else inventory_path.parent
    return directory.absolute().parent


def _members(listing: Mapping[str, Any], group: str) -> list[str]:
    """The hosts of a group and of all groups below it; Ansible has made sure there are no cycles."""
    entry = listing.get(group, {})
    names = list(entry.get("hosts", []))
    for child in entry.get("children", []):
        names += [name for name in _members(listing, child) if name not in names]
    return names


# --------------------------------------------------------------------------------------- reading one host


def _host(path: Path, name: str, role: Literal["head", "worker"], variables: Mapping[str, Any]) -> Host:
    reader = _Variables(path, name, variables)
    connection = _connection(reader, name)
    address = reader.text("ansible_host") or name
    overrides = variables.get("raytools") or {}
    if not isinstance(overrides, Mapping):
        raise reader.error("raytools", "a mapping such as {slots: {per_node: 2}}")
    reader.refuse_templates(overrides, ("raytools",))
    python = reader.raw("ansible_python_interpreter")
    return Host(
        name=name,
        role=role,
        connection=connection,
        address=address,
        cluster_address=reader.text("raytools_address") or _routable(address),
        port=reader.number("ansible_port"),
        user=reader.text("ansible_user"),
        root=_root(path, reader, connection),
        python=sys.executable if python == CONTROLLER_PYTHON else _python(reader),
        become=reader.flag("ansible_become"),
        variables=dict(variables),
        overrides=dict(overrides),
    )


def _connection(reader: _Variables, name: str) -> Literal["local", "ssh"]:
    found = reader.text("ansible_connection")
    if found is None:
        return "local" if name in ("localhost", "127.0.0.1", "::1") else "ssh"
    short = found.removeprefix("ansible.builtin.")
    if short == "local":
        return "local"
    if short in ("ssh", "smart"):
        return "ssh"
    raise reader.error("ansible_connection", "local or ssh")


def _root(path: Path, reader: _Variables, connection: str) -> str:
    root = reader.text("raytools_root") or DEFAULT_ROOT
    if root.startswith("/"):
        return os.path.normpath(root)
    if connection != "local":
        raise reader.error("raytools_root", "an absolute path, the same on every node reached by ssh")
    return os.path.normpath(project_directory(path) / root)


def _python(reader: _Variables) -> str | None:
    found = reader.text("ansible_python_interpreter")
    return None if found is None or found.startswith("auto") else found


def _routable(address: str) -> str | None:
    """An address other nodes can use as it stands: no name, and not loopback (a forwarded port)."""
    try:
        return None if ipaddress.ip_address(address).is_loopback else address
    except ValueError:
        return None


def _check_addresses(path: Path, hosts: list[Host]) -> None:
    """Two names for one machine would give its CPUs away twice."""
    seen: dict[tuple[Any, ...], str] = {}
    for host in hosts:
        where = ("local",) if host.connection == "local" else (host.address, host.port or 22)
        names = [where] + ([("cluster", host.cluster_address)] if host.cluster_address else [])
        for place in names:
            if place in seen:
                shown = " port ".join(str(part) for part in place if part != "cluster")
                found = f"the address of {seen[place]} ({shown})"
                raise _error(path, f"hosts.{host.name}", found, "an address of its own")
            seen[place] = host.name


@dataclass(frozen=True)
class _Variables:
    """Typed reading of one host's variables, with errors that name host and variable."""

    path: Path
    host: str
    values: Mapping[str, Any]

    def error(self, name: str, expected: str, found: str | None = None) -> ConfigError:
        found = found or describe(self.values.get(name))
        finder = _LineFinder(self.path, self.host, ())
        return _error(self.path, f"hosts.{self.host}.{name}", found, expected, finder((name,)))

    def raw(self, name: str) -> Any:
        return self.values.get(name)

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.error(name, "text")
        if "{{" in value:
            raise self.error(name, "a plain value (templates are Ansible's alone)")
        return value

    def number(self, name: str) -> int | None:
        value = self.values.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536):
            return value
        raise self.error(name, "a port")

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "none": False}
        text = str(value).lower()
        if text not in words:
            raise self.error(name, "true or false")
        return words[text]

    def refuse_templates(self, value: Any, where: KeyPath) -> None:
        """`ansible-inventory` lists templates unrendered; merged, they would be taken at their word."""
        if isinstance(value, Mapping):
            for key, inner in value.items():
                self.refuse_templates(inner, (*where, str(key)))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                self.refuse_templates(inner, (*where, index))
        elif isinstance(value, str) and "{{" in value:
            name = ".".join(map(str, where))
            raise self.error(name, "a plain value (templates are Ansible's alone)", describe(value))


# --------------------------------------------------------------------------------------------- messages


def _error(path: Path, key: str, found: str, expected: str, line: int = 1) -> ConfigError:
    return ConfigError(str(Problem(shown_path(path), line, key, found, expected)))


@dataclass(frozen=True)
class _LineFinder:
    """Where a host's variable probably stands in the inventory file.

    Ansible's listing has no lines. In a YAML file the variable is looked for at the host and then in any
    `vars:`; elsewhere (INI, a directory, group_vars) the answer is line 1.
    """

    path: Path
    host: str
    variable: KeyPath = ("raytools",)

    def __call__(self, where: KeyPath) -> int:
        if self.path.is_dir():
            return 1
        try:
            source = read_source(self.path)
        except SourceError:
            return 1
        wanted = (*self.variable, *where)
        candidates = [start for start in _starts(source, self.host) if (*start, *wanted) in source.lines]
        if not candidates:
            candidates = [
                start for start in _starts(source, self.host) if (*start, wanted[0]) in source.lines
            ]
        return source.line((*candidates[0], *wanted)) if candidates else 1


def _starts(source: Source, host: str) -> Iterator[KeyPath]:
    """Paths of the mappings that may hold a host's variables: its own first, then those of groups."""
    yield from (path for path in source.lines if path[-2:] == ("hosts", host))
    yield from (path for path in source.lines if path[-1:] == ("vars",))
