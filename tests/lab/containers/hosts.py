"""What is asked for: the hosts of a lab of containers and how they differ from plain ones. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from tests.lab.hosts import SIZE, Host, LabError, check, check_port, number_of, parse

__all__ = ["HostSpec", "LabError", "parse_host", "plain_hosts"]
_CPUSET = re.compile(r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*")


@dataclass(frozen=True)
class HostSpec(Host):
    """One container; see `Host` for what it shares with other labs' hosts.

    Args:
        cpus: the CPUs it may use, such as `0` or `0-1`; None: all.
        memory: its limit, such as `2g`; None: none.
        shm: the size of its /dev/shm.
        port: where its sshd listens.
        extra: further arguments of `podman create`.
    """

    OPTIONS: ClassVar = ("cpus", "memory", "shm", "port", *Host.OPTIONS)

    cpus: str | None = None
    memory: str | None = None
    shm: str = "1g"
    port: int = 22

    def __post_init__(self) -> None:
        super().__post_init__()
        check(SIZE, self.shm, f"{self.name}: shm", "a size such as 256m or 1g")
        if self.memory is not None:
            check(SIZE, self.memory, f"{self.name}: memory", "a size such as 512m or 2g")
        if self.cpus is not None:
            check(_CPUSET, self.cpus, f"{self.name}: cpus", "CPU numbers such as 0 or 0-1")
        check_port(self.name, self.port)


def plain_hosts(count: int, special: Iterable[HostSpec] = ()) -> list[HostSpec]:
    """n1 to n<count>, with the special ones in their places; see `number_of`."""
    return number_of(count, HostSpec, special)


def parse_host(text: str) -> HostSpec:
    """`n3:cpus=1,memory=2g,without=libgomp1,user=alice,port=2222,become=no,var.name=value`; see `parse`."""
    return parse(text, HostSpec)
