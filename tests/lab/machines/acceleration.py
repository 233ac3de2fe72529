"""Whether this machine runs guests at native speed: proved by a boot, never by the existence of /dev/kvm.

Where virtualization is nested, the device may be there, and guests hang or qemu aborts: then they are
emulated.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab import keys
from tests.lab.commands import Report, last_lines
from tests.lab.machines.image import Image
from tests.lab.machines.qemu import ACCELERATORS, BOARD, PROGRAM, boot

_DEVICE = Path("/dev/kvm")
_PROBE_WAIT_S = 10.0  # with acceleration it takes one second
_LAST_WORDS = "reboot: Power down"
_POWER_OFF = "console=ttyS0 panic=-1 rdinit=/usr/bin/poweroff"  # as far as a first process, then off


@dataclass(frozen=True)
class Acceleration:
    """What was found, once per boot of this machine.

    Args:
        accelerator: kvm or tcg, qemu's emulation.
        reason: why it is that, for people.
        boot_id: of this machine; another boot may have another kernel.
        image: the key of what was booted.
    """

    accelerator: str
    reason: str
    boot_id: str
    image: str


def detect(image: Image, report: Report) -> Acceleration:
    """What this machine can do, from the cache beside the images or by a trial."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    cache = image.directory.with_name(f"acceleration-{os.geteuid()}.json")
    known = _read(cache)
    if known is not None and (known.boot_id, known.image) == (boot_id, image.key):
        return known
    why_not = _obstacle() or _trial(image)
    if why_not is None:
        found = Acceleration("kvm", f"a guest has booted with {_DEVICE}", boot_id, image.key)
    else:
        found = Acceleration("tcg", why_not, boot_id, image.key)
    report(f"machines run {'natively' if found.accelerator == 'kvm' else 'emulated'}: {found.reason}")
    keys.replace(cache, json.dumps(asdict(found), indent=2) + "\n")
    return found


def _read(cache: Path) -> Acceleration | None:
    try:
        return Acceleration(**json.loads(cache.read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # none yet, or another version's
        return None


def _obstacle() -> str | None:
    """What makes a trial needless."""
    if not _DEVICE.exists():
        return f"there is no {_DEVICE}"
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return f"this user may not use {_DEVICE} (sudo adduser $USER kvm allows it, from the next log-in on)"
    return None


def _trial(image: Image) -> str | None:
    """Boots the kernel as far as a first process; what went wrong, or None."""
    argv = [
        PROGRAM, *ACCELERATORS["kvm"], *BOARD, "-smp", "2", "-m", "512m",
        "-no-reboot", "-serial", "stdio", *boot(image, _POWER_OFF),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_WAIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{_DEVICE} is there, but a guest did not boot within {_PROBE_WAIT_S:.0f} s"
    if done.returncode != 0 or _LAST_WORDS not in done.stdout.decode(errors="replace"):
        said = last_lines(done.stderr.decode(errors="replace"), 1)
        return f"{_DEVICE} is there, but a guest did not boot: {said}"
    return None
