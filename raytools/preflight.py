"""What forbids to provision a host, and what people should know before it is done. Pure.

All hosts are judged before the first change to any: a run that stops half-way over the third of ten hosts
leaves more to think about than one that has not begun.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytools.config import ClusterConfig, ExistingStorage, LocalStorage, NfsStorage
from raytools.inventory import Host
from raytools.plan import NodePlan
from raytools.ray_flags import ISOLATION_CPUS
from raytools.units import format_size

ROOM_BYTES = 4 * 2**30
"""An environment with AutoGluon unpacked, its archive, and a little for logs."""
TEMP_ROOM_BYTES = 512 * 2**20
INODES = 60_000  # one environment has about 30,000 files, and two are there during an upgrade
CLOCK_SKEW_S = 30.0
SMALLEST_NOFILE = 8192
KNOWN_SYSTEMS = ("Debian", "Ubuntu", "Red Hat", "Rocky", "AlmaLinux", "CentOS", "Oracle", "Fedora")

State = Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """What was found about one host: sentences, each with what to do."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


def judge(
    hosts: Sequence[Host],
    configs: Mapping[str, ClusterConfig],
    plans: Mapping[str, NodePlan],
    states: Mapping[str, State],
    asked_s: tuple[float, float],
) -> dict[str, Judged]:
    """Judges every host that has answered.

    Args:
        hosts: of the inventory, the head first.
        configs: what is declared for each.
        plans: as far as they could be made.
        states: `raytools.state/1` of each host that has answered.
        asked_s: the controller's clock before the first host was asked and after the last has answered.
    """
    found = {}
    for host in hosts:
        if host.name not in states:
            continue
        state, plan, config = states[host.name], plans.get(host.name), configs[host.name]
        problems = [
            *_system(state, states, hosts),
            *_root(host, state),
            *_room(host, state, plan),
            *_clock(state, asked_s),
            *_ports(state),
            *_address(state, plan),
            *_storage(state, config),
            *_isolation(state, config),
            *_twins(host, hosts, states),
            *_account(host, hosts, states, config),
        ]
        notes = [*_os(state), *_limits(state), *_rights(host, state), *_other_rays(state), *_name(state)]
        found[host.name] = Judged(tuple(problems), tuple(notes))
    return found


# ------------------------------------------------------------------------------------------ the machine


def _system(state: State, states: Mapping[str, State], hosts: Sequence[Host]) -> Iterator[str]:
    arch = state["facts"]["host"]["arch"]
    first = next(host.name for host in hosts if host.name in states)
    expected = states[first]["facts"]["host"]["arch"]
    if arch != expected:
        yield f"its architecture is {arch}, that of {first} is {expected}; one environment serves only one"
    if found := (state["unit"] or {}).get("problem"):
        yield f"{found}. Look there: systemctl status"


def _root(host: Host, state: State) -> Iterator[str]:
    owner, uid = state["root_owner"], state["facts"]["user"]["uid"]
    who, ways = _connected_as(state), "Become root (ansible_become: true) or choose another raytools_root"
    if owner is not None and uid != 0 and owner != who:
        yield f"{host.root} belongs to {owner}, and this connection is {who}. {ways}"
    elif not state["root_writable"]:
        verb = "be made" if owner is None else "be written"
        yield f"{host.root} cannot {verb} by {who}. {ways}"


def _connected_as(state: State) -> str:
    user = state["facts"]["user"]
    return user["name"] or f"uid {user['uid']}"


def _room(host: Host, state: State, plan: NodePlan | None) -> Iterator[str]:
    disk = state["facts"]["disk"]
    installs = plan is not None and not _has_environment(plan, state)
    needed = ROOM_BYTES if installs else TEMP_ROOM_BYTES
    free = disk["root"]["available_bytes"]
    if free is not None and free < needed:
        yield (
            f"the disk of {host.root} has {format_size(free)} free, expected at least {format_size(needed)}. "
            "Make room (raytools env prune removes old environments), or set raytools_root to a larger disk"
        )
    inodes = disk["root"]["inodes_available"]
    if inodes is not None and installs and inodes < INODES:
        yield f"the disk of {host.root} has {inodes} inodes free, expected at least {INODES}. Remove files"
    temporary = disk["tmp"]["available_bytes"]
    if temporary is not None and temporary < TEMP_ROOM_BYTES:
        yield (
            f"/tmp has {format_size(temporary)} free, expected at least {format_size(TEMP_ROOM_BYTES)} "
            "for Ray's logs and spilled objects. Make room there"
        )


def _has_environment(plan: NodePlan, state: State) -> bool:
    environment = plan.environment  # None: not locked yet
    return environment is not None and (
        environment.prefix is not None or environment.id in state["environments"]
    )


def _clock(state: State, asked_s: tuple[float, float]) -> Iterator[str]:
    """A host may have looked at its clock at any moment while all were asked, a dead one for a minute."""
    before_s, after_s = asked_s
    skew_s = max(state["clock_s"] - after_s, 0) or min(state["clock_s"] - before_s, 0)
    if abs(skew_s) > CLOCK_SKEW_S:
        way = "ahead of" if skew_s > 0 else "behind"
        yield (
            f"its clock is {abs(skew_s):.0f} s {way} the controller's, expected less than "
            f"{CLOCK_SKEW_S:.0f} s. Let it keep time: sudo timedatectl set-ntp true"
        )


def _ports(state: State) -> Iterator[str]:
    for port in state["busy_ports"]:
        yield f"{port}. End it, or set another port in cluster.yaml under ray.ports"


def _address(state: State, plan: NodePlan | None) -> Iterator[str]:
    addresses = [ipaddress.ip_address(one) for one in state["facts"]["network"]["addresses"] or ()]
    if plan is None or not addresses:
        return
    try:
        wanted = ipaddress.ip_address(plan.address)
    except ValueError:
        return  # a name, for the resolvers of the others
    if wanted not in addresses:
        own = ", ".join(str(one) for one in addresses if not one.is_loopback) or "only loopback"
        yield (
            f"the other nodes shall reach it at {plan.address}, which is none of its addresses ({own}). "
            "Set raytools_address in the inventory"
        )


def _storage(state: State, config: ClusterConfig) -> Iterator[str]:
    storage = config.storage
    if isinstance(storage, NfsStorage) and not state["systemd"]:
        yield (
            "storage: {type: nfs} is exported and mounted by root, with units of systemd; "
            f"this connection is {_connected_as(state)}, and PID 1 is {state['facts']['host']['init']}. "
            "Become root, or mount the export yourself and use `type: existing` with its path"
        )
    elif isinstance(storage, ExistingStorage) and not state["storage"]["directory"]:
        stalled = state["storage"].get("stalled")
        yield (
            f"{storage.path} {'does not answer' if stalled else 'is not a directory'}, "
            "expected the shared one of `storage: {type: existing}`. "
            "Mount it on this host, or correct storage.path in cluster.yaml"
        )


def _isolation(state: State, config: ClusterConfig) -> Iterator[str]:
    """Where it cannot work `ray start` fails after 40 s, with a message that does not help."""
    if not config.ray.isolation:
        return
    mode, cpus = state["facts"]["cgroup"]["mode"], state["facts"]["cpu"]["usable"]
    otherwise = "or leave out ray.isolation: limited runs do not need it"
    if mode != "v2":
        yield (
            f"ray.isolation: true needs cgroup v2 alone, found {mode or 'no cgroups'}. "
            f"Boot it with systemd.unified_cgroup_hierarchy=1, {otherwise}"
        )
    elif not state["systemd"]:
        yield (
            f"ray.isolation: true needs a unit of systemd with delegated groups; this connection is "
            f"{_connected_as(state)}, and PID 1 is {state['facts']['host']['init']}. Become root, {otherwise}"
        )
    if cpus is not None and cpus <= max(config.nodes.system_reserved.cpus, ISOLATION_CPUS):
        yield (
            f"ray.isolation: true sets at least {ISOLATION_CPUS} CPU aside for Ray itself, and this node has "
            f"{cpus}. Use a larger one, {otherwise}"
        )


def _os(state: State) -> Iterator[str]:
    system = state["facts"]["host"].get("os")
    if system is not None and not system.startswith(KNOWN_SYSTEMS):
        yield f"its system is {system}; raytools is tested on Debian 12, expected to work on Ubuntu and RHEL"


def _twins(host: Host, hosts: Sequence[Host], states: Mapping[str, State]) -> Iterator[str]:
    """Two names for one machine would promise its CPUs twice."""
    mine = _machine(states[host.name])
    for other in hosts:
        if other.name == host.name:
            return
        if other.name in states and mine == _machine(states[other.name]):
            yield f"it is the same machine as {other.name}. Name each machine once"
        elif other.name in states and _hostname(states[host.name]) == _hostname(states[other.name]):
            yield (
                f"its host name {_hostname(states[host.name])} is also that of {other.name}; records "
                "name the host. Give it its own: sudo hostnamectl set-hostname NAME"
            )


def _machine(state: State) -> tuple[str | None, str | None, str]:
    host = state["facts"]["host"]
    return host["machine_id"], host["boot_id"], host["hostname"]


def _hostname(state: State) -> str:
    return str(state["facts"]["host"]["hostname"])


def _account(
    host: Host, hosts: Sequence[Host], states: Mapping[str, State], config: ClusterConfig
) -> Iterator[str]:
    """On shared storage a file belongs to a number, not to a name."""
    mine = states[host.name]["account"]
    if mine is None or isinstance(config.storage, LocalStorage):
        return
    for other in hosts:
        theirs = states.get(other.name, {}).get("account")
        if other.name == host.name or theirs is None:
            continue
        if theirs[0] != mine[0]:
            yield (
                f"user {host.service_user} has uid {mine[0]}, on {other.name} uid {theirs[0]}; shared "
                "storage needs one. Change it (sudo usermod -u UID), or name another account: raytools_user"
            )
        return


# ------------------------------------------------------------------------------------------------ notes


def _limits(state: State) -> Iterator[str]:
    controllers = {"cpuset", "memory"} - set(state["facts"]["cgroup"]["controllers"])
    if state["facts"]["cgroup"]["mode"] is None:
        yield "it has no cgroups: runs are refused unless they say --enforce best-effort"
    elif controllers and state["facts"]["cgroup"]["mode"] in ("v1", "hybrid"):
        yield f"its cgroups lack {', '.join(sorted(controllers))}: runs are refused there"
    nofile = state["facts"]["limits"]["nofile_hard"]
    if not state["systemd"] and nofile is not None and nofile < SMALLEST_NOFILE:
        yield f"{nofile} open files are allowed, Ray wants {SMALLEST_NOFILE} (/etc/security/limits.conf)"


def _rights(host: Host, state: State) -> Iterator[str]:
    if host.connection == "local":
        return
    if not state["privileged"]:
        user = _connected_as(state)
        yield (
            f"connected as {user}, not root: no service user, no unit (Ray does not come back after a "
            f"reboot), no kernel settings; runs have limits only after: sudo raytools grant --user {user}"
        )
        return
    if host.service_user is None:
        yield "connected as root itself: Ray runs as root. For an account of its own: ansible_become: true"
    if not state["systemd"]:
        yield "systemd is not PID 1: Ray is a process, and does not come back after a reboot"


def _other_rays(state: State) -> Iterator[str]:
    for ray in state["other_rays"]:
        yield f"there is {ray}. It shares CPUs and memory with this cluster; end it if nobody needs it"


def _name(state: State) -> Iterator[str]:
    resolved = state["facts"]["network"]["hostname_resolves_to"] or []
    if resolved and all(address.startswith("127.") for address in resolved):
        name = state["facts"]["host"]["hostname"]
        yield f"its own name {name} resolves to {resolved[0]}; Ray is told its address and does not mind"
