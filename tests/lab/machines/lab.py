"""A lab of machines as a whole: up and down; safe to repeat, and after a kill -9 at any moment.

Its truth is which qemu processes run on files below `.raytools/lab/<name>/machines/`, and that directory. A
machine's `digest` is written when it has come up and tells what it was made from, so one is reused only if
it is exactly what is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from tests.lab import base, files
from tests.lab.base import BaseLab, count_of
from tests.lab.commands import Report, in_parallel, say
from tests.lab.hosts import Endpoint, LabError
from tests.lab.machines import acceleration, dependencies, image, network, processes
from tests.lab.machines.hosts import MachineSpec
from tests.lab.machines.machine import Machine, machines_in
from tests.lab.machines.qemu import MachineFiles

_AT_ONCE = 8


class Lab(BaseLab[MachineSpec]):
    """A lab of virtual machines of this checkout, up or not; see `BaseLab` for its arguments."""

    KIND: ClassVar = "virtual machines"
    TARGETS: ClassVar = files.Targets("vm-up", "vm-down")
    spec = MachineSpec

    def __init__(self, name: str = "vm", report: Report = say, checkout: Path = base.CHECKOUT) -> None:
        super().__init__(name, report, checkout)
        self._machines = self.state_dir.resolve() / "machines"  # as it stands in the process table
        self._given_up = threading.Event()

    # --- what it is ---

    @property
    def addresses(self) -> dict[str, str]:
        """Host name -> address in the lab's network, which this machine is not in."""
        return dict(self._state().get("addresses", {}))

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """Host name -> the port of the loopback that leads to its sshd."""
        ports = self._state().get("ports", {})
        return {host: Endpoint(network.LOOPBACK, port) for host, port in ports.items()}

    def machine(self, host: str) -> Machine:
        """One machine, for all that can be done to it.

        Raises:
            LabError: there is none of that name.
        """
        spec, state = self._known(host), self._state()
        return Machine(
            spec=spec, lab=self.name, files=MachineFiles(self._machines / host),
            image=image.Image(image.cache(self.checkout) / state["image"]), accelerator=state["accelerator"],
            address=self.addresses[host], endpoint=self.endpoints[host],
            group=network.multicast_group(self._machines), ssh_config=self.ssh_config,
        )  # fmt: skip

    def is_running(self, host: str) -> bool:
        """Whether it is powered on."""
        return self.machine(host).is_running

    # --- up and down ---

    def up(self, hosts: int | Sequence[MachineSpec]) -> None:
        """Makes the lab consist of exactly these machines, all of them up. Those that are so already run on.

        Ctrl-C leaves nothing of what it has begun.

        Args:
            hosts: how many plain ones, or which.

        Raises:
            LabError: something is missing, or a machine did not come up; the rest is left for `down`.
        """
        specs = self._asked(hosts)
        check_memory(specs)
        dependencies.require(self.checkout)
        with self._locked():
            self._given_up.clear()
            try:
                made = image.ensure(self.checkout, self.report)
                accelerator = acceleration.detect(made, self.report).accelerator
                started = time.monotonic()
                self._reconcile(specs, made, accelerator)
            except KeyboardInterrupt:
                with _uninterrupted():
                    self._take_back()
                raise
            passed_s = time.monotonic() - started
            self.report(f"lab {self.name}: {count_of(len(specs), 'machine')} up after {passed_s:.1f} s")

    def down(self) -> None:
        """Leaves nothing of the lab but the cached image."""
        with self._locked():
            processes.kill(processes.find(self._machines))
            self._forget()
            self._remove_state()

    def keep_logs(self) -> Path:
        """Copies what the machines have said to `.raytools/logs/`, where it outlives the lab."""
        directory = self.checkout / ".raytools" / "logs" / f"lab-{self.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        directory.mkdir(parents=True, exist_ok=True)
        for name in machines_in(self._machines):
            serial = MachineFiles(self._machines / name).serial
            if serial.exists():
                shutil.copy(serial, directory / f"{name}-serial.log")
        return directory

    # --- what happens to single machines, as in the lab of containers; `machine` can do more ---

    def reboot(self, host: str) -> None:
        """An orderly reboot: same address, same keys, same disk; returns when it is up again."""
        self.machine(host).reboot()

    def power_off(self, host: str, *, hard: bool = False) -> None:
        """Shuts a machine down; hard: pulls the plug."""
        machine = self.machine(host)
        machine.power_off() if hard else machine.shut_down()

    def power_on(self, host: str) -> None:
        """Starts a machine that is off; returns when it is up."""
        self.machine(host).start()

    def exec(self, host: str, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a program on a machine as root."""
        return self.machine(host).run(shlex.join(argv), check=check)

    def _emulated(self) -> bool:
        return self._state().get("accelerator") == "tcg"

    # --- how up works ---

    def _reconcile(self, specs: Sequence[MachineSpec], made: image.Image, accelerator: str) -> None:
        """Removes what is not asked for, keeps what is, starts the rest."""
        self._settle(specs, made, accelerator)
        digests = {spec.name: self._digest(spec.name) for spec in specs}
        kept = [name for name, digest in digests.items() if self.machine(name).is_what_is_asked_for(digest)]
        removed = self._remove_all_but(kept)
        self._write_files(specs, storage_of(specs))
        new = [spec.name for spec in specs if spec.name not in kept]
        if not new and not removed:
            self.report(f"lab {self.name}: already up, nothing to do")
            return
        self._each(self._put_hosts_file, kept)
        on = f", {len(kept)} run on" if kept else ""
        self.report(f"lab {self.name}: starting {count_of(len(new), 'machine')}{on}")
        self._each(lambda name: self._start_new(name, digests[name]), new)

    def _settle(self, specs: Sequence[MachineSpec], made: image.Image, accelerator: str) -> None:
        """Keys, addresses, ports and the state file: all that machines and files are made from."""
        before = self._state()
        names = [spec.name for spec in specs]
        addresses = network.choose_addresses(names, before.get("addresses", {}))
        running = {process.directory.name for process in processes.find(self._machines)}
        old_ports = {name: port for name, port in before.get("ports", {}).items() if name in names}
        usable = {name: p for name, p in old_ports.items() if name in running or network.is_free(p)}
        asked = {spec.name: spec.port for spec in specs if spec.port is not None}
        ports = network.choose_ports(names, {**usable, **asked}, self._ports_of_other_labs())
        self._make_keys(specs)
        self._save(specs, addresses=addresses, ports=ports, image=made.key, accelerator=accelerator)

    def _ports_of_other_labs(self) -> set[int]:
        others = [name for name in base.labs_of(self.KIND, self.checkout) if name != self.name]
        states = [base.read_state(self.state_dir.with_name(name)) for name in others]
        return {port for state in states for port in state.get("ports", {}).values()}

    def _remove_all_but(self, kept: Sequence[str]) -> list[str]:
        leftovers = [name for name in machines_in(self._machines) if name not in kept]
        if leftovers:
            self.report(f"lab {self.name}: removing {', '.join(leftovers)} of an earlier vm-up")
            self._remove(leftovers)
        return leftovers

    def _remove(self, names: Sequence[str]) -> None:
        found = processes.find(self._machines)
        processes.kill(process for process in found if process.directory.name in names)
        for name in names:
            shutil.rmtree(self._machines / name)

    def _start_new(self, name: str, digest: str) -> None:
        started = time.monotonic()
        machine = self.machine(name)
        hosts_file = files.hosts_text(name, self.addresses)
        machine.create(self._host_key(name), self._public_key(), hosts_file)
        if self._given_up.is_set():
            return
        machine.power_on()
        state = machine.wait_until_up()
        machine.has_come_up(digest)
        where = f"{machine.address}  ssh {machine.endpoint.address}:{machine.endpoint.port}"
        shown = "" if state == "running" else f", {state}"
        self.report(f"  {name}  {where}  up after {time.monotonic() - started:.1f} s{shown}")

    def _put_hosts_file(self, name: str) -> None:
        self.machine(name).put({"/etc/hosts": (files.hosts_text(name, self.addresses), 0o644)})

    def _each(self, action: Callable[[str], None], names: Sequence[str]) -> None:
        """All machines at once; every failure is told."""
        failures = in_parallel(action, names, _AT_ONCE, interrupted=self._end_unfinished)
        if failures:
            look = f"Look around with ssh -F {self.ssh_config}, then: make vm-down LAB={self.name}"
            raise LabError("\n".join(failures), fix=look)

    # --- how an interrupted up is taken back ---

    def _unfinished(self) -> list[str]:
        names = machines_in(self._machines)
        return [name for name in names if not MachineFiles(self._machines / name).digest.exists()]

    def _end_unfinished(self) -> None:
        """So that whoever waits for one of them hears at once that it is gone."""
        self._given_up.set()
        names = self._unfinished()
        found = processes.find(self._machines)
        processes.kill(process for process in found if process.directory.name in names)

    def _take_back(self) -> None:
        self._end_unfinished()
        finished = set(machines_in(self._machines)) - set(self._unfinished())
        specs = [spec for spec in self.hosts if spec.name in finished]
        names = [spec.name for spec in specs]
        self._remove([name for name in machines_in(self._machines) if name not in names])
        if specs:
            state = self._state()
            own = {key: {name: state[key][name] for name in names} for key in ("addresses", "ports")}
            self._save(specs, **own, image=state["image"], accelerator=state["accelerator"])
            self._write_files(specs, storage_of(specs))
        else:
            self._forget()
            self._remove_state()

    def _digest(self, name: str) -> str:
        """Of all that shapes a machine."""
        machine = self.machine(name)
        made_of = [machine.command(), self._host_public(name), self._public_key(), list(machine.spec.without)]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def running_lab(
    hosts: int | Sequence[MachineSpec] = 2, name: str | None = None, report: Report = say
) -> AbstractContextManager[Lab]:
    """A lab for as long as the block runs; of one that failed, the serial logs are kept.

    `name` None: one that no other process uses.
    """
    lab = Lab(name or f"vm-t{os.getpid()}", report)
    return base.running(
        lab, hosts, lambda failed: report(f"what the machines said is in {failed.keep_logs()}")
    )


def storage_of(specs: Sequence[MachineSpec]) -> str:
    """What cluster.yaml says of the storage: the head serves it, unless a plain user could not mount it."""
    if not all(spec.becomes_root for spec in specs):
        return "{type: local}"
    return f"{{type: nfs, server: {specs[0].name}, export: /srv/raytools, mount: /mnt/raytools}}"


def check_memory(specs: Sequence[MachineSpec], total_bytes: int | None = None) -> None:
    """The machines fit into this machine's memory, if each uses all of its own.

    Args:
        specs: the machines.
        total_bytes: this machine's memory; None: what the kernel says.

    Raises:
        LabError: they do not.
    """
    has = total_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = sum(spec.memory_bytes for spec in specs)
    if wanted > has:
        raise LabError(
            f"{count_of(len(specs), 'machine')} with {wanted / 2**30:.1f} GiB of memory",
            expected=f"at most the {has / 2**30:.1f} GiB of this machine",
            fix='Ask for fewer, N=2, or smaller ones: HOST="n1:memory=2g n2:memory=2g"',
        )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Impatience does not cut the tidying up short: it takes a second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {which: signal.signal(which, signal.SIG_IGN) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
