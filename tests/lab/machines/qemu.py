"""qemu's command line for one machine. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.machines import network
from tests.lab.machines.hosts import MachineSpec
from tests.lab.machines.image import Image

PROGRAM = "qemu-system-x86_64"
PID_FILE_OPTION = "-pidfile"
CLUSTER_LINK = "cluster"
# x86-64-v2, as wheels of numpy and pyarrow ask for, and nothing that is slow to emulate: with `max` the
# kernel clears and copies memory by `rep movsb`, and OpenSSL takes AVX. ssh carries 60 MB in 6 s, not in 17.
EMULATED_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm"
ACCELERATORS = {
    "kvm": ("-accel", "kvm", "-cpu", "host"),
    "tcg": ("-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU),
}
# no bus without devices on it: each costs the kernel time
BOARD = ("-machine", "q35,sata=off,smbus=off,i8042=off", "-nodefaults", "-no-user-config", "-display", "none")
KERNEL_OPTIONS = (
    "console=ttyS0 net.ifnames=0 mitigations=off audit=0 cryptomgr.notests rootfstype=ext4 panic=-1"
)
# norandmaps: qemu translates a program anew for each address where it finds it. 100 processes start in 1 s,
# not in 5 s, a Python in 0.8 s, not in 1.2 s.
QUICKER_BY_ACCELERATOR = {"kvm": "", "tcg": "norandmaps init_on_alloc=0"}


@dataclass(frozen=True)
class MachineFiles:
    """The files of one machine, all in one directory."""

    directory: Path

    @property
    def disk(self) -> Path:
        """What it has written, over the image's disk."""
        return self.directory / "disk.qcow2"

    @property
    def settings(self) -> Path:
        """A tar with its keys, names and addresses: its second disk."""
        return self.directory / "settings.tar"

    @property
    def serial(self) -> Path:
        """What it has said on its serial line, through all its boots."""
        return self.directory / "serial.log"

    @property
    def control(self) -> Path:
        """qemu's control socket; see qmp.py."""
        return self.directory / "qmp.sock"

    @property
    def pid(self) -> Path:
        """Locked by qemu: no two run on one machine's files."""
        return self.directory / "qemu.pid"

    @property
    def digest(self) -> Path:
        """Written once the machine has come up: what it was made from."""
        return self.directory / "digest"


def command(
    spec: MachineSpec, *, lab: str, files: MachineFiles, image: Image, accelerator: str, address: str,
    port: int, group: str,
) -> list[str]:  # fmt: skip
    """The command that starts a machine and returns once qemu has all it needs.

    It has to be started in the machine's directory: a socket's path allows 107 bytes, so this one is
    relative.
    With cache=unsafe what the machine flushes is in this machine's page cache: safe when qemu is killed.

    Args:
        spec: what the machine is to be.
        lab: its lab.
        files: its files.
        image: what it boots from.
        accelerator: kvm or tcg.
        address: its own, in the lab's network.
        port: of the loopback, that leads to its sshd.
        group: the multicast group of the lab's network.
    """
    drive = "if=virtio,cache=unsafe,format"
    quicker = QUICKER_BY_ACCELERATOR[accelerator]
    kernel_options = f"root=/dev/vda rw {KERNEL_OPTIONS} {quicker} systemd.hostname={spec.name}"
    control = f"user,id=control,restrict=on,hostfwd=tcp:{network.LOOPBACK}:{port}-:22"
    cluster = f"socket,id={CLUSTER_LINK},mcast={group},localaddr={network.LOOPBACK}"
    identity = uuid.uuid5(uuid.NAMESPACE_URL, str(files.directory))  # the machine-id, also after a reboot
    return [
        PROGRAM, "-name", f"guest=raytools-{lab}-{spec.name}", "-uuid", str(identity),
        *ACCELERATORS[accelerator], *BOARD, "-smp", str(spec.cpus), "-m", spec.memory,
        *boot(image, kernel_options),
        "-drive", f"file={escaped(files.disk)},{drive}=qcow2",
        "-drive", f"file={escaped(files.settings)},{drive}=raw,readonly=on",
        "-netdev", control, *_card("control", network.control_mac(address)),
        "-netdev", cluster, *_card(CLUSTER_LINK, network.cluster_mac(address)),
        "-device", "virtio-rng-pci",
        "-chardev", f"file,id=serial,path={escaped(files.serial)},append=on", "-serial", "chardev:serial",
        "-qmp", f"unix:{files.control.name},server=on,wait=off",
        PID_FILE_OPTION, str(files.pid), "-daemonize", *spec.extra,
    ]  # fmt: skip


def boot(image: Image, kernel_options: str) -> Sequence[str]:
    """The image's kernel and ramdisk, past firmware and boot loader."""
    return (
        "-kernel", str(image.kernel), "-initrd", str(image.ramdisk), "-append", kernel_options
    )  # fmt: skip


def escaped(path: Path) -> str:
    """A path inside an option, where commas separate."""
    return str(path).replace(",", ",,")


def _card(link: str, mac: str) -> tuple[str, str]:
    return "-device", f"virtio-net-pci,netdev={link},mac={mac},romfile="  # nobody boots from it
