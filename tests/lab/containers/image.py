"""The hosts' root filesystem: a Debian that boots in seconds, made from this machine's own apt sources.

Made once and kept as a podman image whose tag is a hash of everything written here that shapes it.
The hosts are privileged, so what they share with this machine's kernel has to be left alone: whatever would
set sysctls, load modules, trigger udev or mount kernel filesystems is masked.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.lab.containers.commands import PODMAN, Report, as_root, podman, run
from tests.lab.containers.hosts import LabError

RELEASE = "bookworm"
REPOSITORY = "localhost/raytools-lab"
AUTHORIZED_KEYS = "/etc/ssh/lab_authorized_keys"
PACKAGES = (
    "systemd-sysv", "libpam-systemd", "udev", "dbus", "openssh-server", "sudo", "python3", "rsync",
    "ca-certificates", "iproute2", "procps", "iputils-ping", "util-linux", "tar", "logrotate",
    "libgomp1", "libzstd1",
)  # fmt: skip
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
    # no terminals, nothing to scrub, nobody to update for
    "getty.target", "getty-static.service", "console-getty.service", "apt-daily.timer",
    "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
    "dpkg-db-backup.timer",
)  # fmt: skip
_CUSTOMIZE = f"""#!/bin/sh
set -eu
root="$1"
chroot "$root" useradd --uid 1000 --create-home --shell /bin/bash admin
chroot "$root" useradd --uid 1001 --create-home --shell /bin/bash alice
echo 'admin ALL=(ALL:ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/lab"
chmod 0440 "$root/etc/sudoers.d/lab"
cat >"$root/etc/ssh/sshd_config.d/lab.conf" <<'END'
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile .ssh/authorized_keys {AUTHORIZED_KEYS}
END
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\\nReadKMsg=no\\nStorage=volatile\\n' >"$root/etc/systemd/journald.conf.d/lab.conf"
systemctl --root="$root" mask {" ".join(_MASKED)}
systemctl --root="$root" set-default multi-user.target
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
mkdir -p "$root/shared"
"""
_MMDEBSTRAP = (
    "mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar", f"--include={','.join(PACKAGES)}",
    "--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
)  # fmt: skip


def tag() -> str:
    """The image's name: another recipe, another tag."""
    recipe = "\0".join((*_MMDEBSTRAP, RELEASE, _CUSTOMIZE))
    return f"{REPOSITORY}:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


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
    with tempfile.TemporaryDirectory(prefix="raytools-lab-") as scratch:
        os.chmod(scratch, 0o755)
        directory = Path(scratch)
        hook = directory / "customize"
        hook.write_text(_CUSTOMIZE)
        hook.chmod(0o755)
        argv = [*_MMDEBSTRAP, *apt_options(), f'--customize-hook={hook} "$1"', RELEASE, "-"]
        argv += [str(path) for path in _source_files(directory)]
        log = directory / "log"
        with log.open("wb") as messages:
            maker = subprocess.Popen(
                as_root(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages
            )
            command = as_root([*PODMAN, "import", "--change", 'CMD ["/sbin/init"]', "-", unfinished])
            importer = subprocess.Popen(command, stdin=maker.stdout, stdout=messages, stderr=messages)
            assert maker.stdout is not None
            maker.stdout.close()  # so that it hears when the importer is gone
            _wait(maker, importer, report)
        complete = maker.returncode == importer.returncode == 0
        if complete:
            podman("tag", unfinished, name)
        podman("rmi", unfinished, check=False)  # there may be none
        if not complete:
            tail = "\n".join(log.read_text(errors="replace").strip().splitlines()[-25:])
            raise LabError(
                f"The image cannot be built:\n{tail}",
                fix="Do this machine's apt sources answer? apt-get update",
            )


def _wait(maker: subprocess.Popen[bytes], importer: subprocess.Popen[bytes], report: Report) -> None:
    started = time.monotonic()
    try:
        while True:
            try:
                importer.wait(10)
                maker.wait(60)
            except subprocess.TimeoutExpired:
                report(f"  … {time.monotonic() - started:.0f} s")
            else:
                return
    except BaseException:
        for process in (maker, importer):
            process.terminate()
        for process in (maker, importer):
            process.wait()
        raise


def apt_options() -> list[str]:
    """This machine's proxies and certificates for apt, as far as it has any."""
    dumped = run(["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"]).stdout
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Retries")
    return [
        f"--aptopt={line}"
        for line in dumped.splitlines()
        if line.startswith(wanted) and not line.endswith('"";')
    ]


def _source_files(directory: Path) -> list[Path]:
    """Copies of what this machine's apt knows about the release."""
    here = Path("/etc/apt")
    files = [here / "sources.list", *sorted((here / "sources.list.d").glob("*"))]
    written = []
    for number, path in enumerate(files):
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        select = release_stanzas if path.suffix == ".sources" else release_lines
        text = select(path.read_text())
        if text:
            written.append(directory / f"{number}{path.suffix}")
            written[-1].write_text(text)
    if not written:
        raise LabError(f"apt has no source for Debian {RELEASE} on this machine", expected="one in /etc/apt")
    return written


def release_stanzas(text: str) -> str:
    """The stanzas of a `.sources` file that are about the release."""
    stanzas = []
    for stanza in text.split("\n\n"):
        lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
        fields = {key.lower(): value for key, _, value in (line.partition(":") for line in lines)}
        if _of_release(fields.get("suites", "").split()) and fields.get("enabled", "").strip() != "no":
            stanzas.append("\n".join(lines) + "\n")
    return "\n".join(stanzas)


def release_lines(text: str) -> str:
    """The lines of a `.list` file that are about the release."""
    chosen = []
    for line in text.splitlines():
        words = line.partition("]")[2].split() if "[" in line else line.split()[1:]
        if line.split()[:1] == ["deb"] and _of_release(words[1:2]):
            chosen.append(line + "\n")
    return "".join(chosen)


def _of_release(suites: Iterable[str]) -> bool:
    return any(suite == RELEASE or suite.startswith(f"{RELEASE}-") for suite in suites)
