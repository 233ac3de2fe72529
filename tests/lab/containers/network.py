"""A network per lab that leads nowhere else, and this machine's address in it."""

from __future__ import annotations

import ipaddress
import json
import zlib
from collections.abc import Iterable
from typing import Any

from tests.lab.addresses import Subnet
from tests.lab.commands import run
from tests.lab.containers.commands import podman
from tests.lab.hosts import LabError

_RANGE = ipaddress.IPv4Network("10.91.0.0/16")  # private; a /24 of it for each lab


def choose_subnet(lab: str, taken: Iterable[Subnet], given: str | None = None) -> Subnet:
    """A subnet that overlaps with nothing in use: the one the lab had, else by its name, else the next.

    Args:
        lab: its name, which is where the search starts.
        taken: what routes and podman networks use.
        given: what the lab had before.

    Raises:
        LabError: all are taken.
    """
    used = list(taken)
    candidates = list(_RANGE.subnets(new_prefix=24))
    start = zlib.crc32(lab.encode()) % len(candidates)
    ordered = candidates[start:] + candidates[:start]
    if given is not None:
        ordered.insert(0, Subnet(given))
    for subnet in ordered:
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise LabError(
        f"No free subnet for lab {lab}: all of {_RANGE} is routed already",
        fix="End a lab: make lab-down LAB=…",
    )


def taken_subnets(except_network: str, own: str | None = None) -> list[Subnet]:
    """What this machine's routes and podman's other networks use.

    Args:
        except_network: the lab's own network.
        own: the subnet it had before; the guard (see `ensure`) of that one does not count.
    """
    routes = run(["ip", "-j", "-4", "route", "show", "table", "all"]).stdout
    ours = _inspect(except_network)
    bridge = ours.get("network_interface") if ours else None
    found = [
        route["dst"]
        for route in json.loads(routes or "[]")
        if (route.get("dev") != bridge or bridge is None) and route["dst"] not in ("default", own)
    ]
    for name in podman("network", "ls", "--quiet").stdout.split():
        if name != except_network:
            found += [each["subnet"] for each in (_inspect(name) or {}).get("subnets") or []]
    return [network for network in map(_ipv4, found) if network is not None and network.prefixlen > 0]


def ensure(name: str, subnet: Subnet, labels: Iterable[str]) -> bool:
    """Creates the network unless it is there with that subnet; returns whether it did.

    While no host runs there is no bridge, and connections to the lab's addresses would take the default route
    and leave this machine: the guard, a route of last resort, makes them fail at once instead.

    Raises:
        LabError: podman refuses.
    """
    run(["ip", "route", "replace", *_guard(subnet)])
    if has_subnet(name, subnet):
        return False
    if _inspect(name) is not None:
        podman("network", "rm", "--force", name)
    arguments = [part for label in labels for part in ("--label", label)]
    podman("network", "create", "--internal", "--disable-dns", "--subnet", str(subnet), *arguments, name)
    return True


def give_address(name: str, subnet: Subnet) -> None:
    """This machine's own address in the network: podman gives an internal bridge none.

    The bridge exists only while a host runs, so this comes after the start of one.
    """
    bridge = (_inspect(name) or {}).get("network_interface")
    if not bridge:
        raise LabError(f"The network {name} is gone", fix="make lab-down, then make lab-up")
    address = f"{subnet.network_address + 1}/{subnet.prefixlen}"
    run(["ip", "address", "replace", address, "dev", str(bridge)])


def has_subnet(name: str, subnet: Subnet) -> bool:
    """Whether the network is there, with that subnet."""
    found = _inspect(name) or {}
    return [each["subnet"] for each in found.get("subnets") or []] == [str(subnet)]


def remove(name: str, subnet: Subnet | None) -> None:
    """Removes the network if it is there, and the guard of its subnet; None: of the subnet podman names."""
    found = _inspect(name)
    if found is not None:
        podman("network", "rm", "--force", name)
    named = [Subnet(each["subnet"]) for each in (found or {}).get("subnets") or []]
    for guarded in named if subnet is None else [subnet]:
        run(["ip", "route", "delete", *_guard(guarded)], check=False)  # there is none after a reboot


def _guard(subnet: Subnet) -> list[str]:
    return ["unreachable", str(subnet), "metric", "32000"]


def labels_of(name: str) -> dict[str, str]:
    """The labels of a network; none if it is not there."""
    return dict((_inspect(name) or {}).get("labels") or {})


def _inspect(name: str) -> dict[str, Any] | None:
    done = podman("network", "inspect", name, check=False)
    if done.returncode != 0:
        return None
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found[0] if found else None


def _ipv4(text: str) -> Subnet | None:
    try:
        return Subnet(text, strict=False)
    except ValueError:
        return None  # IPv6, or a word such as `blackhole`
