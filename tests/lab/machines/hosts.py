"""What is asked for: the machines of a lab and how they differ from plain ones. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tests.lab.hosts import SIZE, Host, LabError, check, check_port

MOST_CPUS = 64


@dataclass(frozen=True)
class MachineSpec(Host):
    """One virtual machine; see `Host` for what it shares with other labs' hosts.

    Args:
        cpus: how many processors it has.
        memory: its memory, such as `3g`.
        port: where this machine's loopback leads to its sshd; None: a free one.
        extra: further arguments of qemu.
    """

    OPTIONS: ClassVar = ("cpus", "memory", "port", *Host.OPTIONS)

    cpus: int = 2
    memory: str = "4g"
    port: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(SIZE, self.memory, f"{self.name}: memory", "a size such as 3072m or 3g")
        if not 1 <= self.cpus <= MOST_CPUS:
            raise LabError(f"{self.name}: cpus is {self.cpus}", expected=f"1 to {MOST_CPUS}")
        if self.port is not None:
            check_port(self.name, self.port)

    @property
    def memory_bytes(self) -> int:
        """Its memory."""
        return int(self.memory[:-1]) * {"k": 2**10, "m": 2**20, "g": 2**30}[self.memory[-1]]
