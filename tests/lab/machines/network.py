"""The two networks of a machine: one to this machine for ssh alone, one that joins the lab's machines.

The first is qemu's user mode, restricted: a port of this machine's loopback leads to the machine's sshd, and
nothing leads out; every machine has the same address in it. The second is a multicast group on the loopback
that every qemu of the lab joins: a switch without a port to this machine, where other labs' addresses may be
used again.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tests.lab.addresses import Subnet, host_address, mac_address
from tests.lab.guest import Files
from tests.lab.hosts import MOST_HOSTS, LabError

SUBNET = Subnet("10.92.0.0/24")
LOOPBACK = "127.0.0.1"
_CONTROL = "10.0.2.15/24"  # qemu's own choice for a guest in user mode
_PORTS = range(22100, 23000)  # below what the kernel hands out by itself


def control_mac(address: str) -> str:
    """The hardware address of a machine's interface towards this machine."""
    return mac_address(address, "02:5c")


def cluster_mac(address: str) -> str:
    """The hardware address of a machine's interface in the lab's network."""
    return mac_address(address, "02:5d")


def multicast_group(state_dir: Path) -> str:
    """Group and port of a lab's network: by its directory, so that labs do not meet."""
    number = hashlib.sha256(str(state_dir).encode()).digest()
    port = 20000 + int.from_bytes(number[3:5], "big") % 12000
    return f"239.{number[0]}.{number[1]}.{number[2]}:{port}"


def settings(address: str) -> Files:
    """What systemd-networkd of one machine is told.

    The interface of the lab keeps its address when its cable is pulled: then packets are lost, as on a
    network that has failed, instead of being refused by the machine itself.

    Args:
        address: the machine's in the lab's network.
    """
    common = "LinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\nIgnoreCarrierLoss=yes\n"

    def interface(mac: str, its_address: str) -> tuple[str, int]:
        return f"[Match]\nMACAddress={mac}\n\n[Network]\nAddress={its_address}\n{common}", 0o644

    return {
        "/etc/systemd/network/10-control.network": interface(control_mac(address), _CONTROL),
        "/etc/systemd/network/20-cluster.network": interface(
            cluster_mac(address), f"{address}/{SUBNET.prefixlen}"
        ),
    }


def choose_addresses(names: Sequence[str], before: Mapping[str, str]) -> dict[str, str]:
    """Everybody's address in the lab's network; who had one keeps it.

    Args:
        names: of all machines.
        before: name -> address, of machines that may be gone.
    """
    chosen = {name: before[name] for name in names if name in before}
    free = (host_address(SUBNET, index) for index in range(2 * MOST_HOSTS))
    unused = (address for address in free if address not in before.values())
    return {name: chosen[name] if name in chosen else next(unused) for name in names}


def choose_ports(names: Sequence[str], given: Mapping[str, int], taken: Collection[int]) -> dict[str, int]:
    """Everybody's port of the loopback.

    Args:
        names: of all machines.
        given: those that have one.
        taken: ports of other labs.

    Raises:
        LabError: all are taken.
    """
    not_these = {*taken, *given.values()}
    free = (port for port in _PORTS if port not in not_these and is_free(port))
    ports = {}
    for name in names:
        port = given.get(name) or next(free, None)
        if port is None:
            found = f"All ports from {_PORTS.start} to {_PORTS.stop - 1} are taken"
            raise LabError(found, fix="End a lab: make vm-down LAB=…")
        ports[name] = port
    return ports


def is_free(port: int) -> bool:
    """Whether nobody listens at a port of the loopback."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
        try:
            trial.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
