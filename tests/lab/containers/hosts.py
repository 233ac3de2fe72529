"""What is asked for: the hosts of a lab and how they differ from plain ones. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raytools.errors import RaytoolsError

MOST_HOSTS = 32
PRIVILEGED_USERS = ("admin", "root")  # the image's users that may become root without a password
USERS = (*PRIVILEGED_USERS, "alice")
_LAB_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,22}[a-z0-9])?")
_HOST_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?")
_SIZE = re.compile(r"[1-9][0-9]*[kmg]")
_CPUSET = re.compile(r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*")
_VARIABLE = "var."


class LabError(RaytoolsError):
    """The lab cannot be what was asked for."""


@dataclass(frozen=True)
class HostSpec:
    """One host. What is left out is as on any other host of the lab.

    Args:
        name: its host name, n1 and so on.
        cpus: the CPUs it may use, such as `0` or `0-1`; None: all.
        memory: its limit, such as `2g`; None: none.
        shm: the size of its /dev/shm.
        without: Debian packages it lacks. `python3` takes every package whose name begins so.
        user: whom Ansible logs in as: admin (may become root), alice (a plain user) or root.
        port: where its sshd listens.
        become: the inventory's ansible_become; None: as the user may.
        extra: further arguments of `podman create`.
        variables: further variables in the inventory.
    """

    name: str
    cpus: str | None = None
    memory: str | None = None
    shm: str = "1g"
    without: tuple[str, ...] = ()
    user: str = "admin"
    port: int = 22
    become: bool | None = None
    extra: tuple[str, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(_HOST_NAME, self.name, "host name", "a name such as n1")
        _check(_SIZE, self.shm, f"{self.name}: shm", "a size such as 256m or 1g")
        if self.memory is not None:
            _check(_SIZE, self.memory, f"{self.name}: memory", "a size such as 512m or 2g")
        if self.cpus is not None:
            _check(_CPUSET, self.cpus, f"{self.name}: cpus", "CPU numbers such as 0 or 0-1")
        for package in self.without:
            _check(re.compile(r"[a-z0-9][a-z0-9.+-]+"), package, f"{self.name}: without", "a Debian package")
        if self.user not in USERS:
            raise LabError(f"{self.name}: user is {self.user!r}", expected=f"one of {', '.join(USERS)}")
        if not 0 < self.port < 65536:
            raise LabError(f"{self.name}: port is {self.port}", expected="1 to 65535")

    @property
    def becomes_root(self) -> bool:
        """What the inventory says of this host."""
        return self.user in PRIVILEGED_USERS if self.become is None else self.become

    def as_json(self) -> dict[str, Any]:
        """For the lab's state file; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> HostSpec:
        """The opposite of `as_json`."""
        lists = {key: tuple(found[key]) for key in ("without", "extra")}
        return cls(**{**found, **lists})


def check_lab_name(name: str) -> str:
    """Returns the name if containers, networks and clusters can be called so.

    Raises:
        LabError: it cannot.
    """
    _check(_LAB_NAME, name, "LAB", "a name such as lab (a-z, 0-9 and -, at most 24)")
    return name


def plain_hosts(count: int, special: Iterable[HostSpec] = ()) -> list[HostSpec]:
    """n1 to n<count>, with the special ones in their places.

    Raises:
        LabError: there is no such host, or too many.
    """
    if not 1 <= count <= MOST_HOSTS:
        raise LabError(f"{count} hosts", expected=f"1 to {MOST_HOSTS}")
    hosts = {f"n{number}": HostSpec(f"n{number}") for number in range(1, count + 1)}
    for spec in special:
        if spec.name not in hosts:
            raise LabError(
                f"--host {spec.name}", expected=f"one of n1 to n{count}", fix="Ask for more hosts: N="
            )
        hosts[spec.name] = spec
    return list(hosts.values())


def check_unique(hosts: Sequence[HostSpec]) -> None:
    """Every host has a name of its own.

    Raises:
        LabError: two have the same, or there is none at all.
    """
    names = [host.name for host in hosts]
    if not names or len(names) > MOST_HOSTS:
        raise LabError(f"{len(names)} hosts", expected=f"1 to {MOST_HOSTS}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LabError(f"two hosts are called {twice[0]}", expected="one")


def parse_host(text: str) -> HostSpec:
    """`n3:cpus=1,memory=2g,without=libgomp1,without=python3,user=alice,port=2222,become=no,var.name=value`.

    Raises:
        LabError: an option does not exist, or its value is none.
    """
    name, _, options = text.partition(":")
    given: dict[str, Any] = {"name": name, "without": (), "extra": (), "variables": {}}
    for option in filter(None, options.split(",")):
        key, separator, value = option.partition("=")
        if not separator:
            raise LabError(f"--host {text}: {option!r}", expected="key=value")
        if key.startswith(_VARIABLE):
            given["variables"][key.removeprefix(_VARIABLE)] = value
        elif key in ("without", "extra"):
            given[key] += (value,)
        elif key in ("cpus", "memory", "shm", "user", "port", "become"):
            given[key] = _value(text, key, value)
        else:
            raise LabError(
                f"--host {text}: unknown option {key!r}",
                expected="cpus, memory, shm, without, user, port, become, extra or var.NAME",
            )
    return HostSpec(**given)


def _value(text: str, key: str, value: str) -> str | int | bool:
    if key == "port":
        if not value.isdecimal():
            raise LabError(f"--host {text}: port is {value!r}", expected="a number")
        return int(value)
    if key == "become":
        if value not in ("yes", "no"):
            raise LabError(f"--host {text}: become is {value!r}", expected="yes or no")
        return value == "yes"
    return value.replace("+", ",") if key == "cpus" else value  # a comma ends the option: cpus=0+2


def _check(pattern: re.Pattern[str], value: str, what: str, expected: str) -> None:
    if not pattern.fullmatch(value):
        raise LabError(f"{what} is {value!r}", expected=expected)
