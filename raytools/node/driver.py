"""How a person starts a Ray driver on a node: `sudo … python -m raytools.node driver PROGRAM [ARGUMENT ...]`.

A driver needs the environment's programs, Ray's address and token, and, under `ray.isolation`, a place: Ray
moves every driver into its workers' group, which the kernel allows it only for processes below its own unit.
Any other driver ends the raylet (Ray 2.58.1, AddProcessToWorkersCgroup; ray-project/ray#65233).
"""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytools.errors import RaytoolsError
from raytools.node.cgroup_v2 import MAIN_LEAF
from raytools.node.plan_file import DEFAULT_ROOT
from raytools.node.ray_state import read_node

PREPENDED = ("PATH", "PYTHONPATH")  # the others replace what is there
_PLACE = "--cgroup-path="  # of `ray start`, under isolation


def variables(node: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """What a driver is told; those in `PREPENDED` go in front of what is there.

    Args:
        node: the plan of this node.
        prefix: of the environment.
    """
    ray = node["ray"]
    told = {
        "PATH": f"{prefix}/bin",
        "CONDA_PREFIX": prefix,
        "RAYTOOLS_ROOT": node["root"],
        "RAY_ADDRESS": ray["gcs_address"],
        "RAY_AUTH_MODE": ray["auth"],
    }
    if ray["auth"] == "token":
        told["RAY_AUTH_TOKEN_PATH"] = ray["token_path"]
    if node.get("toolkit"):
        told["PYTHONPATH"] = node["toolkit"]
    return told


def isolated_group(node: Mapping[str, Any]) -> str | None:
    """The directory of the group that drivers have to begin in; None without `ray.isolation`."""
    places = [text for text in node["ray"]["start_args"] if text.startswith(_PLACE)]
    return f"{places[0].removeprefix(_PLACE)}/{MAIN_LEAF}" if places else None


def become_driver(node: Mapping[str, Any], user: str | None = None) -> dict[str, str]:
    """Makes this process one that Ray takes over as a driver: at its place, with no more rights than Ray's.

    Args:
        node: the plan of this node.
        user: whose driver it is, where this is root; default: Ray's own, whose workers write beside it.

    Returns:
        The variables to go on with.

    Raises:
        RaytoolsError: it may not be one, or Ray does not run here.
    """
    service_user = node.get("user")
    user = user or service_user
    if isolated_group(node) and user and service_user and _uid(user) == 0 and _uid(service_user) != 0:
        # The group that Ray moves it to has CPUs of its own as soon as a limited run was here, and the kernel
        # lets nobody change the CPUs of a process with more capabilities (cap_task_setscheduler).
        raise RaytoolsError(
            f"ray.isolation is on, and root's driver would end the raylet, which {service_user} may not move",
            expected=f"a driver of {service_user}, or of another user who is not root",
        )
    _enter(node)
    return _become(user)


def _enter(node: Mapping[str, Any]) -> None:
    """Moves this process to where Ray can take it over as a driver; nothing to do without `ray.isolation`.

    Raises:
        RaytoolsError: it may not, or Ray does not run here.
    """
    group = isolated_group(node)
    if group is None:
        return
    try:
        Path(group, "cgroup.procs").write_text("0")
    except FileNotFoundError:
        raise RaytoolsError(
            f"{group} does not exist", expected="Ray's unit to run here", fix="See: raytools doctor"
        ) from None
    except OSError as error:
        raise RaytoolsError(
            f"ray.isolation is on, and this process cannot enter {group}: {error.strerror}",
            expected="drivers to begin in the group of Ray's unit (from outside they would end the raylet)",
            fix=f"Start the driver by: {command(node)} PROGRAM",
        ) from error


def command(node: Mapping[str, Any]) -> str:
    """What a person types on a node before a driver's own command."""
    python = f"{node['environment']['prefix']}/bin/python"
    return f"sudo env PYTHONPATH={node['toolkit']} {python} -m raytools.node driver"


def main(argv: list[str]) -> int:
    """Becomes the program; 127 if it cannot be executed, 2 if a driver cannot start here."""
    parser = argparse.ArgumentParser(
        prog="python -m raytools.node driver",
        description="Starts a program on this node as a driver of the cluster's Ray, in the environment.",
        epilog="Example: driver python fit.py --trials 100",
    )
    parser.add_argument("--root", help=f"of the cluster (default: RAYTOOLS_ROOT, else {DEFAULT_ROOT})")
    parser.add_argument("--user", help="run it as this user (root only; default: the service account)")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="and its arguments")
    options = parser.parse_args(argv)
    if not options.program:
        parser.error("found no program, expected one, as in: driver python fit.py")
    try:
        node = read_node(Path(options.root or os.environ.get("RAYTOOLS_ROOT") or DEFAULT_ROOT) / "node.json")
        environment = become_driver(node, options.user)
    except RaytoolsError as error:
        print(error, file=sys.stderr)
        return 2
    for name, value in variables(node, node["environment"]["prefix"]).items():
        rest = environment.get(name) if name in PREPENDED else None
        environment[name] = f"{value}:{rest}" if rest else value
    try:
        os.execvpe(options.program[0], options.program, environment)
    except OSError as error:
        print(f"driver: {options.program[0]}: {error.strerror}", file=sys.stderr)
    return 127


def _become(user: str | None) -> dict[str, str]:
    """Changes to the user, if this is root; returns the variables to go on with.

    Raises:
        RaytoolsError: there is no such user.
    """
    environment = dict(os.environ)
    if user is None or os.getuid() != 0:
        return environment
    account = _account(user)
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    return {**environment, "HOME": account.pw_dir, "USER": user, "LOGNAME": user}


def _uid(user: str) -> int:
    return _account(user).pw_uid


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise RaytoolsError(
            f"this node has no user {user}",
            expected="one that exists there (--user), by default the service account (raytools_user)",
            fix="The service account is made by: ansible-playbook playbooks/cluster.yml",
        ) from None
