"""Which network device has an address, and how large its packets may be. Reads /sys and asks the kernel."""

from __future__ import annotations

import fcntl
import socket
import struct

from raytools.node.cgroup_tree import read_text

_SIOCGIFADDR = 0x8915  # netdevice(7): the device's IPv4 address
_NAME_BYTES = 15


def devices() -> dict[str, dict[str, int | str | None]]:
    """Address -> `device`, `mtu_bytes`, `speed_mbit` (None where the driver does not say)."""
    found = {}
    for address, name in [*_ipv4(), *_ipv6()]:
        found[address] = {
            "device": name,
            "mtu_bytes": _number(f"/sys/class/net/{name}/mtu"),
            "speed_mbit": _number(f"/sys/class/net/{name}/speed"),
        }
    return found


def _number(path: str) -> int | None:
    try:
        text = (read_text(path) or "").strip()
    except OSError:  # `speed` of a virtual device is there, and cannot be read
        return None
    return int(text) if text.isdigit() else None


def _ipv4() -> list[tuple[str, str]]:
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unsent:
        for _index, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:_NAME_BYTES])
            try:
                answer = fcntl.ioctl(unsent.fileno(), _SIOCGIFADDR, request)
            except OSError:  # a device without an address
                continue
            found.append((socket.inet_ntoa(answer[20:24]), name))
    return found


def _ipv6() -> list[tuple[str, str]]:
    found = []
    for line in (read_text("/proc/net/if_inet6") or "").splitlines():
        fields = line.split()
        if len(fields) == 6 and not fields[0].startswith("fe80"):
            found.append((socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0])), fields[5]))
    return found
