"""Prints the sockets to which it can connect of services that start programs for others."""

import contextlib
import glob
import socket

PATHS = (
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "/run/user/*/systemd/private",
    "/run/user/*/bus",
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/user/*/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
)
for pattern in PATHS:
    for path in glob.glob(pattern):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            print(path, flush=True)
