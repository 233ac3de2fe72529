"""What every lab's host has, whatever it is made of: a name, an account, what it lacks. Pure.

A lab of containers and one of virtual machines each add their own options in a class derived from `Host`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

from raytools.errors import RaytoolsError

MOST_HOSTS = 32
PRIVILEGED_USERS = ("admin", "root")  # the images' users that may become root without a password
USERS = (*PRIVILEGED_USERS, "alice")
SIZE = re.compile(r"[1-9][0-9]*[kmg]")
_LAB_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,22}[a-z0-9])?")
_HOST_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+")
_VARIABLE = "var."
_REPEATED = ("without", "extra")


class LabError(RaytoolsError):
    """The lab cannot be what was asked for."""


class Endpoint(NamedTuple):
    """Where this machine reaches a host's sshd."""

    address: str
    port: int


@dataclass(frozen=True)
class Host:
    """One host. What is left out is as on any other host of the lab.

    Args:
        name: its host name, n1 and so on.
        without: Debian packages it lacks. `python3` takes every package whose name begins so.
        user: whom Ansible logs in as: admin (may become root), alice (a plain user) or root.
        become: the inventory's ansible_become; None: as the user may.
        extra: further arguments of the program that makes it.
        variables: further variables in the inventory.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("without", "user", "become", "extra")

    name: str
    without: tuple[str, ...] = ()
    user: str = "admin"
    become: bool | None = None
    extra: tuple[str, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(_HOST_NAME, self.name, "host name", "a name such as n1")
        for package in self.without:
            check(_PACKAGE, package, f"{self.name}: without", "a Debian package")
        if self.user not in USERS:
            raise LabError(f"{self.name}: user is {self.user!r}", expected=f"one of {', '.join(USERS)}")

    @property
    def becomes_root(self) -> bool:
        """What the inventory says of this host."""
        return self.user in PRIVILEGED_USERS if self.become is None else self.become

    def as_json(self) -> dict[str, Any]:
        """For the lab's state file; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls: type[H], found: Mapping[str, Any]) -> H:
        """The opposite of `as_json`."""
        return cls(**{**found, **{key: tuple(found[key]) for key in _REPEATED}})


H = TypeVar("H", bound=Host)


def check_lab_name(name: str) -> str:
    """Returns the name if hosts, networks and clusters can be called so.

    Raises:
        LabError: it cannot.
    """
    check(_LAB_NAME, name, "LAB", "a name such as lab (a-z, 0-9 and -, at most 24)")
    return name


def number_of(count: int, kind: type[H], special: Iterable[H] = ()) -> list[H]:
    """n1 to n<count> of a kind, with the special ones in their places.

    Raises:
        LabError: there is no such host, or too many.
    """
    if not 1 <= count <= MOST_HOSTS:
        raise LabError(f"{count} hosts", expected=f"1 to {MOST_HOSTS}")
    hosts = {f"n{number}": kind(f"n{number}") for number in range(1, count + 1)}
    for spec in special:
        if spec.name not in hosts:
            raise LabError(
                f"--host {spec.name}", expected=f"one of n1 to n{count}", fix="Ask for more hosts: N="
            )
        hosts[spec.name] = spec
    return list(hosts.values())


def check_unique(hosts: Sequence[Host]) -> None:
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


def parse(text: str, kind: type[H]) -> H:
    """`n3:memory=2g,without=libgomp1,without=python3,user=alice,port=2222,become=no,var.name=value`.

    Raises:
        LabError: an option does not exist, or its value is none.
    """
    name, _, options = text.partition(":")
    given: dict[str, Any] = {"name": name, "variables": {}, **dict.fromkeys(_REPEATED, ())}
    for option in filter(None, options.split(",")):
        key, separator, value = option.partition("=")
        if not separator:
            raise LabError(f"--host {text}: {option!r}", expected="key=value")
        if key.startswith(_VARIABLE):
            given["variables"][key.removeprefix(_VARIABLE)] = value
        elif key not in kind.OPTIONS:
            expected = f"{', '.join(kind.OPTIONS)} or var.NAME"
            raise LabError(f"--host {text}: unknown option {key!r}", expected=expected)
        elif key in _REPEATED:
            given[key] += (value,)
        else:
            given[key] = _value(text, key, value, kind)
    return kind(**given)


def _value(text: str, key: str, value: str, kind: type[Host]) -> str | int | bool:
    wanted = str(kind.__dataclass_fields__[key].type)
    if wanted.startswith("int"):
        if not value.isdecimal():
            raise LabError(f"--host {text}: {key} is {value!r}", expected="a number")
        return int(value)
    if wanted.startswith("bool"):
        if value not in ("yes", "no"):
            raise LabError(f"--host {text}: {key} is {value!r}", expected="yes or no")
        return value == "yes"
    return value.replace("+", ",") if key == "cpus" else value  # a comma ends the option: cpus=0+2


def check_port(name: str, port: int) -> None:
    """A TCP port.

    Raises:
        LabError: it is none.
    """
    if not 0 < port < 65536:
        raise LabError(f"{name}: port is {port}", expected="1 to 65535")


def check(pattern: re.Pattern[str], value: str, what: str, expected: str) -> None:
    """The whole value is as the pattern has it.

    Raises:
        LabError: it is not.
    """
    if not pattern.fullmatch(value):
        raise LabError(f"{what} is {value!r}", expected=expected)
