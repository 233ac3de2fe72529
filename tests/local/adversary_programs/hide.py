"""Mounts the cgroups afresh in namespaces of its own, and leaves a daemon in groups of its own making.

argv[1]: `deep` (below a path longer than the kernel takes), `many` (in one of 300 groups), or `frozen`: it
freezes the group that it is in itself. argv[2] begins the names of the groups.
"""

import contextlib
import os
import sys
import time

from fresh_cgroups import OWN_NAMESPACES, become_root, by_mount, libc, mount_afresh

HOW, NAME = sys.argv[1], sys.argv[2].ljust(200, "-")


def make_groups(directory):
    """Returns a descriptor of the one to hide in."""
    place = os.open(directory, os.O_RDONLY)
    if HOW == "many":
        for number in range(300):
            os.mkdir(f"{sys.argv[2]}-{number}", dir_fd=place)
        return os.open(f"{sys.argv[2]}-0", os.O_RDONLY, dir_fd=place)
    for _ in range(25):
        os.mkdir(NAME, dir_fd=place)
        place = os.open(NAME, os.O_RDONLY, dir_fd=place)
    return place


def write(file, value, place=None):
    with os.fdopen(os.open(file, os.O_WRONLY, dir_fd=place), "w") as target:
        target.write(value)


user = os.getuid(), os.getgid()
hierarchies, places = {}, []
if libc.unshare(OWN_NAMESPACES) == 0:
    become_root(*user)
    hierarchies = mount_afresh(by_mount)
child = os.fork()
if child == 0:
    os.setsid()
    time.sleep(1000)
for names, directory in hierarchies.items():
    # what the kernel or raytools does not let it do it leaves
    with contextlib.suppress(PermissionError):
        if HOW == "frozen":
            if names == ("freezer",):
                write(f"{directory}/freezer.state", "FROZEN")
            if names == ("",):
                write(f"{directory}/cgroup.freeze", "1")
            continue
        if names == ("cpuset",):  # an empty one, as a new one is, takes no processes
            write(f"{directory}/cgroup.clone_children", "1")
        place = make_groups(directory)
        write("cgroup.procs", str(child), place)
        places.append(place)
print("hidden in", len(places), "of", len(hierarchies), "hierarchies")
