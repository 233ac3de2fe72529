"""One machine: its files, how it is started, waited for, and what tests do to it."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.lab import guest, keys
from tests.lab.commands import last_lines, run, until
from tests.lab.hosts import Endpoint, LabError
from tests.lab.machines import network, processes, qemu, qmp
from tests.lab.machines.hosts import MachineSpec
from tests.lab.machines.image import SETTINGS_DONE, Image
from tests.lab.machines.qemu import CLUSTER_LINK, MachineFiles

BOOT_WAIT_S = {"kvm": 90.0, "tcg": 300.0}  # from the start to a settled systemd
_END_WAIT_S = 90.0  # for an orderly end under emulation
# qemu accepts at once and passes the connection on when the machine can take it. Who hangs up earlier and
# tries again leaves several waiting, and each costs an emulated sshd a second
_GREETING_WAIT_S = 15.0
_TAIL_LINES = 40


@dataclass(frozen=True)
class Machine:
    """A machine of a lab, on or off.

    Args:
        spec: what it is to be.
        lab: its lab's name.
        files: its files.
        image: what it boots from.
        accelerator: kvm or tcg.
        address: its own, in the lab's network.
        endpoint: where this machine reaches its sshd.
        group: the multicast group of the lab's network.
        ssh_config: for `ssh -F`.
    """

    spec: MachineSpec
    lab: str
    files: MachineFiles
    image: Image
    accelerator: str
    address: str
    endpoint: Endpoint
    group: str
    ssh_config: Path

    @property
    def name(self) -> str:
        return self.spec.name

    # --- power ---

    @property
    def is_running(self) -> bool:
        """Whether it is powered on, paused or not."""
        return bool(processes.find(self.files.directory))

    def start(self) -> None:
        """Powers it on with the disk it has; returns when it is up.

        Raises:
            LabError: qemu refuses, or the machine does not come up: with the end of its serial line.
        """
        self.power_on()
        self.wait_until_up()

    def power_off(self) -> None:
        """Pulls the plug: qemu is killed. What the machine had not flushed is lost."""
        processes.kill(processes.find(self.files.directory))

    def shut_down(self) -> None:
        """Ends it in an orderly way; returns when it is off."""
        self.run("systemctl poweroff", check=False)
        if until(lambda: None if self.is_running else True, _END_WAIT_S) is None:
            raise LabError(self._failure(f"{self.name} is still on {_END_WAIT_S:.0f} s after poweroff"))

    def reboot(self) -> None:
        """An orderly reboot: same address, same keys, same disk; returns when it is up again."""
        before = self._boot_id()
        self.run("systemctl reboot", check=False)

        def another_boot() -> bool | None:
            return True if self._boot_id() not in ("", before) else None

        if until(another_boot, BOOT_WAIT_S[self.accelerator], every_s=1) is None:
            raise LabError(self._failure(f"{self.name} did not come back from its reboot"))
        self.wait_until_up()

    # --- what may fail on a real machine ---

    def pause(self) -> None:
        """Stops all its processors: it answers nothing, and its connections stay open."""
        qmp.request(self.files.control, "stop")

    def resume(self) -> None:
        """Lets it go on, with the right time: its clock stood still, the one on its board did not."""
        qmp.request(self.files.control, "cont")
        self.run("hwclock --hctosys --utc")

    def unplug(self) -> None:
        """Pulls the cable to the other machines; ssh from this machine goes on."""
        qmp.request(self.files.control, "set_link", name=CLUSTER_LINK, up=False)

    def plug_in(self) -> None:
        """Puts the cable back."""
        qmp.request(self.files.control, "set_link", name=CLUSTER_LINK, up=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It stands still while the block runs."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """It is cut off from the other machines while the block runs."""
        self.unplug()
        try:
            yield
        finally:
            self.plug_in()

    # --- commands inside ---

    def run(
        self, shell: str, *, user: str = "root", data: bytes | None = None, wait_s: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Runs a shell command there by ssh, as root unless told otherwise; see `commands.run`."""
        argv = ["ssh", "-F", str(self.ssh_config), "-l", user, self.name, shell]
        return run(argv, data=data, wait_s=wait_s, check=check, root=False)

    def put(self, files: guest.Files) -> None:
        """Writes root's files there."""
        self.run("tar --extract --directory=/", data=guest.archive(files))

    def _boot_id(self) -> str:
        """Empty while sshd does not answer."""
        if not guest.sshd_answers(self.endpoint, _GREETING_WAIT_S):
            return ""
        with suppress(LabError):  # it stopped in mid-answer
            return self.run("cat /proc/sys/kernel/random/boot_id", wait_s=30).stdout.strip()
        return ""

    # --- how it comes to be ---

    def create(self, host_key: Path, authorized_key: str, hosts_file: str) -> None:
        """Makes its files: an empty overlay over the image's disk, and its settings."""
        self.files.directory.mkdir(mode=0o700, parents=True)
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(self.image.disk)]
        run([*overlay, str(self.files.disk)], root=False)
        settings = {
            **guest.settings(host_key, authorized_key, hosts_file),
            **network.settings(self.address),
            "/etc/hostname": (f"{self.name}\n", 0o644),
            SETTINGS_DONE: ("", 0o644),
        }
        self.files.settings.touch(mode=0o600)
        self.files.settings.write_bytes(guest.archive(settings))

    def command(self) -> list[str]:
        """The command that starts it."""
        return qemu.command(
            self.spec, lab=self.lab, files=self.files, image=self.image, accelerator=self.accelerator,
            address=self.address, port=self.endpoint.port, group=self.group,
        )  # fmt: skip

    def power_on(self) -> None:
        """Starts qemu; returns when its devices are there.

        Raises:
            LabError: qemu refuses.
        """
        run(self.command(), cwd=self.files.directory, root=False, wait_s=60)

    def wait_until_up(self) -> str:
        """Waits for sshd and systemd; takes away what the machine is to lack.

        Returns:
            `running`, or `degraded: ` and the units that failed.

        Raises:
            LabError: it did not come up, with the end of its serial line.
        """
        limit_s = BOOT_WAIT_S[self.accelerator]
        deadline = time.monotonic() + limit_s
        if until(self._sshd, limit_s, every_s=1) is not True:
            found = f"sshd did not answer at {self.endpoint.address} port {self.endpoint.port}"
            raise LabError(self._failure(f"{self.name}: {found}"))

        def execute(argv: list[str]) -> subprocess.CompletedProcess[str]:
            left_s = max(5.0, deadline - time.monotonic())
            return self.run(shlex.join(argv), wait_s=left_s, check=False)

        try:
            state = guest.finish(self.spec, execute, deadline)
        except LabError as error:
            raise LabError(self._failure(f"{self.name}: {error}")) from error
        if not guest.is_up(state):
            raise LabError(self._failure(f"{self.name}: systemd is {state or 'silent'!r}, expected running"))
        return state

    def is_what_is_asked_for(self, digest: str) -> bool:
        """Whether it runs, has come up before and was made from just that."""
        made_from = self.files.digest.read_text() if self.files.digest.exists() else ""
        return made_from == digest and self.is_running and guest.sshd_answers(self.endpoint, _GREETING_WAIT_S)

    def has_come_up(self, digest: str) -> None:
        """Notes what it was made from: until then a later `up` makes it anew."""
        keys.replace(self.files.digest, digest)

    def _sshd(self) -> bool | None:
        """True: it answers; None: not yet; False: it cannot any more."""
        if guest.sshd_answers(self.endpoint, _GREETING_WAIT_S):
            return True
        return None if self.is_running else False

    def _failure(self, found: str) -> str:
        state = "it runs" if self.is_running else "qemu has ended"
        text = self.files.serial.read_text(errors="replace") if self.files.serial.exists() else ""
        return f"{found} ({state})\n--- end of {self.files.serial}\n{last_lines(text, _TAIL_LINES)}"


def machines_in(directory: Path) -> Sequence[str]:
    """The names of the machines that have files there."""
    return sorted(os.listdir(directory)) if directory.is_dir() else []
