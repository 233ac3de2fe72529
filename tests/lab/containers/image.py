"""The hosts' root filesystem as a podman image: a Debian that boots in seconds.

Made once and kept under a tag that is a hash of everything that shapes it. The hosts are privileged, so what
they share with this machine's kernel has to be left alone: whatever would set sysctls, load modules, trigger
udev or mount kernel filesystems is masked.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from tests.lab import debian
from tests.lab.commands import Report
from tests.lab.containers.commands import PODMAN, podman

REPOSITORY = "localhost/raytools-lab"
_MASKED = (
    # shared with this machine's kernel: not the hosts' to touch
    "systemd-udevd.service", "systemd-udevd-kernel.socket", "systemd-udevd-control.socket",
    "systemd-udev-trigger.service", "systemd-sysctl.service", "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount", "systemd-modules-load.service",
    "modprobe@.service", "kmod-static-nodes.service", "systemd-remount-fs.service", "dev-hugepages.mount",
    "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount", "systemd-random-seed.service", "systemd-journald-audit.socket",
    "systemd-pstore.service", "hwclock.service",
    # podman sets eth0 up; systemd-networkd would drop its address
    "systemd-networkd.service", "systemd-networkd.socket", "systemd-network-generator.service",
    *debian.IDLE_UNITS,
)  # fmt: skip
_JOURNAL = r"""mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nReadKMsg=no\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/lab.conf"
"""
RECIPE = debian.Recipe("tar", debian.PACKAGES, _MASKED, settings=_JOURNAL, more='mkdir -p "$root/shared"\n')


def tag() -> str:
    """The image's name: another recipe, another tag."""
    return f"{REPOSITORY}:{RECIPE.key()}"


def ensure(report: Report) -> str:
    """The tag of an image that exists, built if need be: half a minute.

    Raises:
        LabError: it cannot be built.
    """
    name = tag()
    if podman("image", "exists", name, check=False).returncode == 0:
        return name
    report(f"building the image {name} (once; about 40 s)")
    started = time.monotonic()
    _build(name, report)
    report(f"built in {time.monotonic() - started:.0f} s")
    return name


def purge() -> list[str]:
    """Removes every image the lab has made; returns their tags.

    Raises:
        LabError: one is in use.
    """
    listed = podman("images", "--filter", f"reference={REPOSITORY}", "--format", "{{.Repository}}:{{.Tag}}")
    tags = listed.stdout.split()
    if tags:
        podman("rmi", *tags)
    return tags


def _build(name: str, report: Report) -> None:
    # under the final name only when all is well: an archive that was cut short may be imported all the same
    unfinished = f"{REPOSITORY}:unfinished-{os.getpid()}"
    importing = [*PODMAN, "import", "--change", 'CMD ["/sbin/init"]', "-", unfinished]
    with (
        tempfile.NamedTemporaryFile(prefix="raytools-lab-", suffix=".log") as messages,
        debian.command(RECIPE, "-") as making,
    ):
        maker = debian.start(making, messages=messages, output=subprocess.PIPE)
        importer = debian.start(importing, messages=messages, source=maker.stdout)
        assert maker.stdout is not None
        maker.stdout.close()  # so that it hears when the importer is gone
        complete = debian.wait_for([maker, importer], report)
        if complete:
            podman("tag", unfinished, name)
        podman("rmi", unfinished, check=False)  # there may be none
        if not complete:
            raise debian.build_failed(Path(messages.name))
