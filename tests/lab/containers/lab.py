"""A lab as a whole: up, down, reboot; safe to repeat, and after a kill -9 at any moment.

Its truth is what podman lists under the lab's label, plus `.raytools/lab/<name>/` for keys, addresses and
what was asked for. `up` makes the two agree; `down` removes both. A container carries a digest of all that
shaped it, so a host is reused only if it is exactly what is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from tests.lab import base, files, keys
from tests.lab.addresses import Subnet, host_address
from tests.lab.base import BaseLab, count_of
from tests.lab.commands import Report, T, in_parallel, say
from tests.lab.containers import container, dependencies, image, network
from tests.lab.containers.commands import podman
from tests.lab.containers.hosts import HostSpec
from tests.lab.hosts import Endpoint, LabError

_AT_ONCE = 4  # podman commands; more only wait for each other's locks
_STORAGE = "{type: existing, path: /shared}"


class Lab(BaseLab[HostSpec]):
    """A lab of containers of this checkout, up or not; see `BaseLab` for its arguments."""

    KIND: ClassVar = "containers"
    TARGETS: ClassVar = files.Targets("lab-up", "lab-down")
    spec = HostSpec

    def __init__(self, name: str = "lab", report: Report = say, checkout: Path = base.CHECKOUT) -> None:
        super().__init__(name, report, checkout)
        self.shared = self.state_dir / "shared"
        self._network = f"raytools-{name}"
        self._cgroup = f"raytools-lab-{name}"

    # --- what it is ---

    @property
    def addresses(self) -> dict[str, str]:
        """Host name -> address."""
        state = self._state()
        if not state:
            return {}
        subnet = Subnet(state["subnet"])
        return {each["name"]: host_address(subnet, i) for i, each in enumerate(state["hosts"])}

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """Host name -> where its sshd is: this machine is in the hosts' network."""
        addresses = self.addresses
        return {host.name: Endpoint(addresses[host.name], host.port) for host in self.hosts}

    def container(self, host: str) -> str:
        """The name of a host's container."""
        return f"raytools-{self.name}-{host}"

    def is_running(self, host: str) -> bool:
        """Whether it is powered on."""
        return any(each.running for each in container.find(self.name) if each.name == self.container(host))

    # --- up and down ---

    def up(self, hosts: int | Sequence[HostSpec]) -> None:
        """Makes the lab consist of exactly these hosts, all of them up. Hosts that are so already run on.

        Args:
            hosts: how many plain ones, or which.

        Raises:
            LabError: something is missing, or a host did not come up; the rest is left for `down`.
        """
        specs = self._asked(hosts)
        dependencies.require()
        with self._locked():
            self._require_ours()
            with keys.locked(self.state_dir.with_name(".image.lock"), "The image"):  # two labs, one build
                tag = image.ensure(self.report)
            started = time.monotonic()
            self._reconcile(specs, tag)
            self.report(
                f"lab {self.name}: {count_of(len(specs))} up after {time.monotonic() - started:.1f} s"
            )

    def down(self) -> None:
        """Leaves nothing of the lab but the cached image.

        Raises:
            LabError: something cannot be removed: what, and why.
        """
        if not self.state_dir.parent.exists() and not dependencies.podman_is_there():
            self._forget()
            return
        with self._locked():
            if dependencies.podman_is_there():
                self._require_ours()
                found = [each.name for each in container.find(self.name)]
                container.remove(found)
                network.remove(self._network, self._subnet() if self._state() else None)
            left = container.remove_cgroups(self._cgroup)
            self._forget()
            self._remove_state()
        if left:
            raise LabError(f"cgroups of the lab {self.name} are still in use: {', '.join(map(str, left))}")

    # --- what happens to single hosts ---

    def reboot(self, host: str) -> None:
        """An orderly reboot: same address, same keys, same disk; returns when it is up again."""
        self._known(host)
        podman("restart", self.container(host))
        self._await(host)

    def power_off(self, host: str, *, hard: bool = False) -> None:
        """Shuts a host down; hard: pulls the plug.

        The network goes first: the kernel, which goes on here, would end every connection of a killed process
        with a word to its peer. A machine without power says nothing.
        """
        self._known(host)
        if hard:
            self.exec(host, ["ip", "link", "set", "eth0", "down"])
            podman("kill", "--signal", "KILL", self.container(host))
            podman("wait", self.container(host))
        else:
            podman("stop", self.container(host))

    def power_on(self, host: str) -> None:
        """Starts a host that is off; returns when it is up."""
        self._known(host)
        podman("start", self.container(host))
        self._await(host)

    def exec(self, host: str, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a program on a host as root, without ssh."""
        self._known(host)
        return podman("exec", self.container(host), *argv, check=check)

    # --- how up works ---

    def _reconcile(self, specs: Sequence[HostSpec], tag: str) -> None:
        """Removes what is not asked for, keeps what is, starts the rest."""
        self._settle(specs)
        digests = {spec.name: self._digest(spec, tag) for spec in specs}
        kept = [] if self._prepare_network() else self._reusable(digests)
        removed = self._remove_all_but(kept)
        self._write_files(specs, _STORAGE)
        new = [spec for spec in specs if spec.name not in kept]
        if kept:
            network.give_address(self._network, self._subnet())
        if not new and not removed:
            self.report(f"lab {self.name}: already up, nothing to do")
            return
        self._put_hosts_files(kept)
        on = f", {len(kept)} run on" if kept else ""
        self.report(f"lab {self.name}: starting {count_of(len(new))}{on}")
        self._each(lambda spec: self._start_new(spec, tag, digests[spec.name]), new)

    def _settle(self, specs: Sequence[HostSpec]) -> None:
        """Keys, addresses and the state file: all that containers and files are made from."""
        before = self._state()
        taken = network.taken_subnets(self._network, before.get("subnet"))
        subnet = network.choose_subnet(self.name, taken, before.get("subnet"))
        self.shared.mkdir(exist_ok=True)
        if self.shared.stat().st_mode & 0o7777 != 0o1777:
            self.shared.chmod(0o1777)
        self._make_keys(specs)
        self._save(specs, subnet=str(subnet))

    def _prepare_network(self) -> bool:
        found = network.labels_of(self._network)
        subnet = self._subnet()
        if found and not network.has_subnet(self._network, subnet):
            container.remove([each.name for each in container.find(self.name)])
        labels = [f"{key}={value}" for key, value in self._labels().items()]
        return network.ensure(self._network, subnet, labels)

    def _reusable(self, digests: Mapping[str, str]) -> list[str]:
        found = {each.name: each for each in container.find(self.name) if each.running}
        same = [
            name
            for name, digest in digests.items()
            if (each := found.get(self.container(name))) and each.labels.get(container.DIGEST_LABEL) == digest
        ]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            finished = pool.map(lambda name: container.is_finished(self.container(name)), same)
        return [name for name, is_finished in zip(same, finished, strict=True) if is_finished]

    def _remove_all_but(self, kept: Sequence[str]) -> list[str]:
        keep = {self.container(name) for name in kept}
        leftovers = [each.name for each in container.find(self.name) if each.name not in keep]
        if leftovers:
            self.report(f"lab {self.name}: removing {', '.join(sorted(leftovers))} of an earlier lab-up")
            container.remove(leftovers)
        return leftovers

    def _start_new(self, spec: HostSpec, tag: str, digest: str) -> None:
        name, address = self.container(spec.name), self.addresses[spec.name]
        started = time.monotonic()
        podman(
            *container.create_arguments(
                spec, container=name, address=address, net=self._network, cgroup_parent=f"/{self._cgroup}",
                shared=self.shared, labels={**self._labels(), container.DIGEST_LABEL: digest}, image=tag,
            )
        )  # fmt: skip
        hosts_file = files.hosts_text(spec.name, self.addresses)
        container.put(
            name, container.settings(spec, self._host_key(spec.name), self._public_key(), hosts_file)
        )
        podman("start", name)
        self._await(spec.name, started)

    def _await(self, host: str, started: float | None = None) -> None:
        began = time.monotonic() if started is None else started
        spec, address = self._known(host), self.addresses[host]
        network.give_address(self._network, self._subnet())
        state = container.wait_until_up(self.container(host), spec, address)
        shown = "" if state == "running" else f", {state}"
        self.report(f"  {host}  {address}  up after {time.monotonic() - began:.1f} s{shown}")

    def _put_hosts_files(self, names: Sequence[str]) -> None:
        def put(name: str) -> None:
            text = files.hosts_text(name, self.addresses)
            container.put(self.container(name), {"/etc/hosts": (text, 0o644)})

        self._each(put, names)

    def _each(self, action: Callable[[T], None], of: Sequence[T]) -> None:
        """All hosts at once; every failure is told."""
        failures = in_parallel(action, of, _AT_ONCE)
        if failures:
            raise LabError(
                "\n".join(failures), fix=f"Look around with podman exec, then: make lab-down LAB={self.name}"
            )

    # --- small things ---

    def _subnet(self) -> Subnet:
        return Subnet(self._state()["subnet"])

    def _labels(self) -> dict[str, str]:
        return {container.LAB_LABEL: self.name, container.CHECKOUT_LABEL: str(self.checkout)}

    def _digest(self, spec: HostSpec, tag: str) -> str:
        made_of = [
            spec.as_json(),
            tag,
            self.addresses[spec.name],
            self._host_public(spec.name),
            self._public_key(),
        ]
        made_of += [str(self.shared), str(container.ca_bundle())]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]

    def _require_ours(self) -> None:
        """Another checkout's lab of this name is left alone while it runs; a dead one's remains are not."""
        for each in container.find(self.name):
            other = each.labels.get(container.CHECKOUT_LABEL, "")
            if other != str(self.checkout) and each.running and Path(other).exists():
                raise LabError(
                    f"A lab called {self.name} runs from {other}",
                    fix=f"Take another name: LAB=… Or end it: make -C {other} lab-down LAB={self.name}",
                )


def running_lab(
    hosts: int | Sequence[HostSpec] = 3, name: str | None = None, report: Report = say
) -> AbstractContextManager[Lab]:
    """A lab for as long as the block runs; `name` None: one that no other process uses."""
    return base.running(Lab(name or f"lab-t{os.getpid()}", report), hosts)
