"""A lab as a whole: up, down, reboot; safe to repeat, and after a kill -9 at any moment.

Its truth is what podman lists under the lab's label, plus `.raytools/lab/<name>/` for keys, addresses and
what was asked for. `up` makes the two agree; `down` removes both. A container carries a digest of all that
shaped it, so a host is reused only if it is exactly what is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.lab.containers import container, dependencies, files, image, keys, network
from tests.lab.containers.commands import Report, T, podman, run
from tests.lab.containers.hosts import HostSpec, LabError, check_lab_name, check_unique, plain_hosts

CHECKOUT = Path(__file__).resolve().parents[3]
_AT_ONCE = 4  # podman commands; more only wait for each other's locks
_RESERVED_INVENTORIES = ("hosts", "examples")


def say(text: str) -> None:
    """A line for people, at once."""
    print(text, flush=True)


class Lab:
    """A lab of this checkout, up or not.

    Args:
        name: containers, network, inventory and cluster are called after it.
        report: gets a line for every step.
        checkout: where `.raytools/` and `inventory/` are.
    """

    def __init__(self, name: str = "lab", report: Report = say, checkout: Path = CHECKOUT) -> None:
        self.name = check_lab_name(name)
        if name in _RESERVED_INVENTORIES:
            raise LabError(f"LAB is {name!r}", expected="another name: inventory/ has that file already")
        self.report = report
        self.checkout = checkout
        self.state_dir = checkout / ".raytools" / "lab" / name
        self.shared = self.state_dir / "shared"
        self.inventory = checkout / "inventory" / f"{name}.yml"
        self.cluster_yaml = self.state_dir / "cluster.yaml"
        self.ssh_config = self.state_dir / "ssh_config"
        self.known_hosts = checkout / ".raytools" / "ssh" / "known_hosts"
        self.key = self.state_dir / "id_ed25519"
        self._network = f"raytools-{name}"
        self._cgroup = f"raytools-lab-{name}"

    # --- what it is ---

    @property
    def hosts(self) -> list[HostSpec]:
        """The hosts that were asked for last; none if the lab is down."""
        return [HostSpec.from_json(each) for each in self._state().get("hosts", [])]

    @property
    def addresses(self) -> dict[str, str]:
        """Host name -> address."""
        state = self._state()
        if not state:
            return {}
        subnet = network.Subnet(state["subnet"])
        return {each["name"]: network.host_address(subnet, i) for i, each in enumerate(state["hosts"])}

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
        specs = plain_hosts(hosts) if isinstance(hosts, int) else list(hosts)
        check_unique(specs)
        dependencies.require()
        if self.inventory.exists() and not self._inventory_is_ours():
            raise LabError(f"{self.inventory} is not a lab's inventory", fix="Take another name: LAB=…")
        with self._locked():
            self._require_ours()
            with keys.locked(self.state_dir.with_name(".image.lock"), "The image"):  # two labs, one build
                tag = image.ensure(self.report)
            started = time.monotonic()
            self._reconcile(specs, tag)
            self.report(f"lab {self.name}: {_count(len(specs))} up after {time.monotonic() - started:.1f} s")

    def add_host(self, spec: HostSpec | None = None) -> HostSpec:
        """One more host; the others run on.

        Args:
            spec: the host; None: a plain one with the next free number.
        """
        before = self.hosts
        if not before:
            raise LabError(f"The lab {self.name} is down", fix=f"make lab-up LAB={self.name}")
        names = {host.name for host in before}
        if spec is None:
            spec = HostSpec(next(f"n{i}" for i in range(1, len(before) + 2) if f"n{i}" not in names))
        self.up([*before, spec])
        return spec

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
        """Shuts a host down; hard: pulls the plug."""
        self._known(host)
        if hard:
            podman("kill", "--signal", "KILL", self.container(host))
            podman("wait", self.container(host))
        else:
            podman("stop", self.container(host))

    def power_on(self, host: str) -> None:
        """Starts a host that is off; returns when it is up."""
        self._known(host)
        podman("start", self.container(host))
        self._await(host)

    def ssh(
        self, host: str, command: str, *, user: str | None = None, wait_s: float = 60, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Runs a shell command on a host by ssh, as the inventory's user or another (admin, alice, root).

        Raises:
            LabError: with check: it ended with another exit code than 0.
        """
        self._known(host)
        login = ["-l", user] if user else []
        argv = ["ssh", "-F", str(self.ssh_config), *login, host, command]
        done = subprocess.run(
            argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=wait_s, check=False
        )
        if check and done.returncode != 0:
            raise LabError(
                f"{host}: `{command}` ended with exit code {done.returncode}: {done.stderr.strip()}"
            )
        return done

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
        self._write_files(specs)
        new = [spec for spec in specs if spec.name not in kept]
        if kept:
            network.give_address(self._network, self._subnet())
        if not new and not removed:
            self.report(f"lab {self.name}: already up, nothing to do")
            return
        self._put_hosts_files(kept)
        on = f", {len(kept)} run on" if kept else ""
        self.report(f"lab {self.name}: starting {_count(len(new))}{on}")
        self._each(lambda spec: self._start_new(spec, tag, digests[spec.name]), new)

    def _settle(self, specs: Sequence[HostSpec]) -> None:
        """Keys, addresses and the state file: all that containers and files are made from."""
        before = self._state()
        taken = network.taken_subnets(self._network, before.get("subnet"))
        subnet = network.choose_subnet(self.name, taken, before.get("subnet"))
        (self.state_dir / "hosts").mkdir(mode=0o700, exist_ok=True)
        self.shared.mkdir(exist_ok=True)
        if self.shared.stat().st_mode & 0o7777 != 0o1777:
            self.shared.chmod(0o1777)
        keys.ensure_key(self.key, f"lab {self.name}")
        for spec in specs:
            keys.ensure_key(self._host_key(spec.name), spec.name)
        state = {"subnet": str(subnet), "hosts": [spec.as_json() for spec in specs]}
        keys.replace(self._state_file(), json.dumps(state, indent=2) + "\n")

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

    def _each(self, action: Callable[[T], None], specs: Sequence[T]) -> None:
        """All hosts at once; every failure is told."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            futures = [pool.submit(action, spec) for spec in specs]
        failures = [str(error) for error in (future.exception() for future in futures) if error is not None]
        if failures:
            raise LabError(
                "\n".join(failures), fix=f"Look around with podman exec, then: make lab-down LAB={self.name}"
            )

    def _write_files(self, specs: Sequence[HostSpec]) -> None:
        addresses = self.addresses
        keys.set_entries(
            self.known_hosts,
            self.name,
            [keys.entry(addresses[s.name], s.port, self._host_public(s.name), self.name) for s in specs],
        )
        config = files.ssh_config_text(specs, addresses, self.key, self.known_hosts)
        keys.replace(self.ssh_config, config)
        keys.replace(self.cluster_yaml, files.cluster_text(self.name), 0o644)
        self._share_project_state()
        inventory = files.inventory_text(self.name, specs, addresses, self.key)
        keys.replace(self.inventory, inventory, 0o644)

    def _share_project_state(self) -> None:
        """raytools keeps known hosts and built environments beside cluster.yaml: here, the checkout's own."""
        link = self.state_dir / ".raytools"
        if not link.is_symlink():
            shutil.rmtree(link, ignore_errors=True)
            link.symlink_to(self.checkout / ".raytools")

    # --- how down works ---

    def _forget(self) -> None:
        keys.set_entries(self.known_hosts, self.name, [])
        if self._inventory_is_ours():
            self.inventory.unlink()

    def _remove_state(self) -> None:
        def keep_going(*_: Any) -> None:
            """What is left is removed as root below."""

        shutil.rmtree(self.state_dir, onerror=keep_going)
        if self.state_dir.exists():
            run(["rm", "-rf", "--one-file-system", str(self.state_dir)])

    def _inventory_is_ours(self) -> bool:
        return self.inventory.exists() and self.inventory.read_text().startswith(files.INVENTORY_HEADER)

    # --- small things ---

    def _state_file(self) -> Path:
        return self.state_dir / "lab.json"

    def _state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._state_file().read_text())
        except FileNotFoundError:
            return {}
        return found

    def _subnet(self) -> network.Subnet:
        return network.Subnet(self._state()["subnet"])

    def _known(self, host: str) -> HostSpec:
        for spec in self.hosts:
            if spec.name == host:
                return spec
        names = ", ".join(self.addresses) or "none: it is down"
        raise LabError(f"The lab {self.name} has no host {host}", expected=f"one of its hosts ({names})")

    def _host_key(self, host: str) -> Path:
        return self.state_dir / "hosts" / f"{host}_ed25519"

    def _host_public(self, host: str) -> str:
        return self._host_key(host).with_name(f"{host}_ed25519.pub").read_text().strip()

    def _public_key(self) -> str:
        return self.key.with_name(f"{self.key.name}.pub").read_text().strip()

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

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.state_dir.with_name(f"{self.name}.lock")
        with keys.locked(lock, f"The lab {self.name}", wait=False):
            yield


@contextmanager
def running_lab(
    hosts: int | Sequence[HostSpec] = 3, name: str | None = None, report: Report = say
) -> Iterator[Lab]:
    """A lab for as long as the block runs, and nothing of it afterwards.

    Args:
        hosts: how many plain ones, or which.
        name: None: one that no other process uses.
        report: gets a line for every step.
    """
    lab = Lab(name or f"lab-t{os.getpid()}", report)
    try:
        lab.up(hosts)
        yield lab
    finally:
        lab.down()


def labs_of(checkout: Path = CHECKOUT) -> list[str]:
    """The names of this checkout's labs that left a state directory."""
    with suppress(FileNotFoundError):
        return sorted(path.name for path in (checkout / ".raytools" / "lab").iterdir() if path.is_dir())
    return []


def _count(number: int) -> str:
    return "1 host" if number == 1 else f"{number or 'no'} hosts"
