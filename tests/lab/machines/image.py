"""The machines' disk, kernel and initial ramdisk: Debian with its own kernel, NFS server and client.

Made once and kept in `.raytools/cache/machines/<key>/`, where the key is a hash of everything that shapes it.
Each machine writes to an overlay of its own; the disk made here is never written to again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab import debian, keys
from tests.lab.commands import Report, run

DISK_SIZE = "12G"  # sparse: room for an environment of a few GB beside its archive
PACKAGES = (*debian.PACKAGES, "linux-image-cloud-amd64", "kmod", "nfs-kernel-server", "nfs-common")
_MASKED = (
    *debian.IDLE_UNITS,
    # two emulated processors boot two machines: what nobody waits for is not started
    "systemd-networkd-wait-online.service", "systemd-network-generator.service", "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "modprobe@drm.service",
    "modprobe@fuse.service", "modprobe@configfs.service", "modprobe@dm_mod.service",
    "modprobe@loop.service", "modprobe@efi_pstore.service", "systemd-pstore.service",
    "systemd-update-utmp-runlevel.service", "nfs-blkmap.service",
)  # fmt: skip
# before the kernel's package makes its initial ramdisk: no more in it than what mounts the disk. The modules
# are named, so nothing has to find out about devices there: its udev costs four seconds under emulation
_SMALL_RAMDISK = (
    '--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d";'
    " printf 'MODULES=list\\nCOMPRESS=gzip\\n' >\"$1/etc/initramfs-tools/conf.d/lab\";"
    " printf 'virtio_pci\\nvirtio_blk\\next4\\n' >\"$1/usr/share/initramfs-tools/modules.d/lab\"",
    "--dpkgopt=path-exclude=/usr/share/initramfs-tools/hooks/udev",
    "--dpkgopt=path-exclude=/usr/share/initramfs-tools/scripts/init-*/udev",
)
# what a processor's and a chipset's features make udev load, and no test is about
_NO_MODULES = (
    "kvm", "kvm_amd", "kvm_intel", "powernow_k8", "acpi_cpufreq", "aesni_intel", "crct10dif_pclmul",
    "crc32_pclmul", "ghash_clmulni_intel", "sha1_ssse3", "sha256_ssse3", "sha512_ssse3", "evdev",
    "serio_raw", "psmouse", "pcspkr", "iTCO_wdt", "lpc_ich", "i2c_i801", "qemu_fw_cfg",
)  # fmt: skip
SETTINGS_DONE = "/etc/raytools-lab-settings"
_SETTINGS = rf"""cat >"$root/etc/systemd/system/lab-settings.service" <<'END'
[Unit]
Description=This machine's keys, names and addresses, from its second disk
DefaultDependencies=no
ConditionPathExists=!{SETTINGS_DONE}
After=systemd-remount-fs.service
Before=sysinit.target systemd-udevd.service systemd-networkd.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/tar --extract --file=/dev/vdb --directory=/
END
systemctl --root="$root" add-wants sysinit.target lab-settings.service
systemctl --root="$root" enable systemd-networkd.service
systemctl --root="$root" disable nfs-server.service nfs-client.target rpcbind.service rpcbind.socket
printf 'blacklist %s\\n' {" ".join(_NO_MODULES)} >"$root/etc/modprobe.d/lab.conf"
echo '/dev/vda / ext4 defaults 0 0' >"$root/etc/fstab"
"""
RECIPE = debian.Recipe(
    "directory", PACKAGES, _MASKED, settings=_SETTINGS, options=_SMALL_RAMDISK
)  # fmt: skip
_MKFS = (
    "mke2fs", "-q", "-F", "-t", "ext4", "-L", "lab",
    # nothing is left for the machines to initialize at their first boot, and the file stays sparse
    "-E", "lazy_itable_init=0,lazy_journal_init=0,discard",
)  # fmt: skip


@dataclass(frozen=True)
class Image:
    """What a machine boots from."""

    directory: Path

    @property
    def key(self) -> str:
        return self.directory.name

    @property
    def disk(self) -> Path:
        return self.directory / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def ramdisk(self) -> Path:
        return self.directory / "initrd"


def key() -> str:
    """The image's name: another recipe, another key."""
    return RECIPE.key(*_MKFS, DISK_SIZE)


def cache(checkout: Path) -> Path:
    """Where images are kept, and whether this machine's acceleration works."""
    return checkout / ".raytools" / "cache" / "machines"


def is_built(checkout: Path) -> bool:
    """Whether the image is there."""
    return (cache(checkout) / key()).is_dir()


def ensure(checkout: Path, report: Report) -> Image:
    """An image that exists, built if need be: about a minute.

    Raises:
        LabError: it cannot be built.
    """
    directory = cache(checkout)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    image = Image(directory / key())
    with _locked(directory):  # two labs, one build
        if not is_built(checkout):
            report(f"building the machines' image {image.key} (once; about a minute)")
            started = time.monotonic()
            _remove([path for path in directory.glob("unfinished-*") if path.is_dir()])
            _build(image, report)
            report(f"built in {time.monotonic() - started:.0f} s")
    return image


def purge(checkout: Path) -> list[str]:
    """Removes every image and all else that is kept for machines; returns the images' keys."""
    directory = cache(checkout)
    if not directory.is_dir():
        return []
    with _locked(directory):
        found = sorted(path for path in directory.iterdir() if path.is_dir())
        _remove(found)
    shutil.rmtree(directory, ignore_errors=True)
    return [path.name for path in found]


def _build(image: Image, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=image.directory.parent) as name:
        scratch = Path(name)
        root, log, finished = scratch / "root", scratch / "log", scratch / "image"
        root.mkdir()
        finished.mkdir(mode=0o755)
        made = Image(finished)
        try:
            with log.open("wb") as messages, debian.command(RECIPE, str(root)) as making:
                complete = debian.wait_for([debian.start(making, messages=messages)], report)
            if not complete:
                raise debian.build_failed(log)
            report("  … writing the disk")
            run(["cp", "--dereference", str(root / "vmlinuz"), str(made.kernel)])
            run(["cp", "--dereference", str(root / "initrd.img"), str(made.ramdisk)])
            run([*_MKFS, "-d", str(root), str(made.disk), DISK_SIZE], wait_s=300)
            run(["chown", f"{os.getuid()}:{os.getgid()}", *map(str, (made.kernel, made.ramdisk, made.disk))])
            for path in (made.kernel, made.ramdisk, made.disk):
                path.chmod(0o444)
        finally:
            _remove([root])
        finished.rename(image.directory)


def _remove(paths: list[Path]) -> None:
    """As root, whose files these are; what a build that was killed has mounted there stays."""
    if paths:
        run(["rm", "-rf", "--one-file-system", *map(str, paths)], wait_s=120, check=False)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with keys.locked(directory / ".lock", "The machines' image", keep=True):
        yield
