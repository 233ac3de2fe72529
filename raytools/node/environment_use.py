"""Which living processes run from an environment: their executable or a file they have mapped is in it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD of include/linux/sched.h, in the flags of /proc/PID/stat


class Process(NamedTuple):
    """A process that uses an environment, or one that cannot be looked into."""

    pid: int
    user: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid} of {self.user})"


class Use(NamedTuple):
    """Who uses which prefix, and who might without our being able to see it."""

    users: dict[Path, list[Process]]
    unseen: list[Process]


def find_use(prefixes: Sequence[Path], proc: str = "/proc") -> Use:
    """Looks at every process of this machine (not at those of other machines that share the directory)."""
    # what the kernel shows has no links in it
    marks = {prefix: os.path.realpath(prefix) + "/" for prefix in prefixes}
    users: dict[Path, list[Process]] = {prefix: [] for prefix in prefixes}
    unseen = []
    names = [name for name in os.listdir(proc) if name.isdigit()]
    if "1" not in names:  # mounted with hidepid: there are others, whose number nobody tells us
        unseen.append(Process(0, "other users", "hidden processes"))
    for name in names:
        try:
            text = f" {os.readlink(f'{proc}/{name}/exe')}\n" + _read(f"{proc}/{name}/maps")
        except PermissionError:
            text = " " + _read_if_there(f"{proc}/{name}/cmdline").replace("\0", " ")
            mentions = any(f" {mark}" in text for mark in marks.values())
            # init was there before any environment, and in containers even root may not look into it
            if not mentions and name != "1" and not _is_kernel_thread(f"{proc}/{name}"):
                unseen.append(_describe(proc, name))
        except OSError:
            continue  # it ended meanwhile, or is a kernel thread
        for prefix, mark in marks.items():
            if f" {mark}" in text:
                users[prefix].append(_describe(proc, name))
    return Use(users, unseen)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        return stream.read()


def _read_if_there(path: str) -> str:
    try:
        return _read(path)
    except OSError:
        return ""


def _is_kernel_thread(directory: str) -> bool:
    try:
        fields = _read(f"{directory}/stat").rpartition(")")[2].split()
        return bool(int(fields[6]) & _KERNEL_THREAD)
    except (OSError, IndexError, ValueError):
        return False


def _describe(proc: str, name: str) -> Process:
    try:
        user_id = os.stat(f"{proc}/{name}").st_uid
        command = _read(f"{proc}/{name}/comm").strip()
    except OSError:
        return Process(int(name), "?", "a process that ended")
    try:
        user = pwd.getpwuid(user_id).pw_name
    except KeyError:
        user = str(user_id)
    return Process(int(name), user, command)
