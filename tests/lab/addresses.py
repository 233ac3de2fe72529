"""Addresses of a lab's hosts in their own network, and the hardware addresses that belong to them. Pure."""

from __future__ import annotations

import ipaddress

Subnet = ipaddress.IPv4Network
_FIRST_HOST = 11


def host_address(subnet: Subnet, index: int) -> str:
    """The address of the lab's host number `index`, counted from 0."""
    return str(subnet.network_address + _FIRST_HOST + index)


def mac_address(address: str, prefix: str = "02:5b") -> str:
    """A locally administered one that belongs to the address: neighbours' caches outlive a reboot."""
    return f"{prefix}:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)
