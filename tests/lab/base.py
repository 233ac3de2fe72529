"""What labs of containers and of virtual machines have in common: their place in the checkout, their files.

A lab owns `.raytools/lab/<name>/`, its lines in known_hosts and `inventory/<name>.yml`; one process at a time
changes it. Which hosts exist, and how they come up, is the derived class's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from tests.lab import files, keys
from tests.lab.commands import Report, run, say
from tests.lab.hosts import Endpoint, H, LabError, check_lab_name, check_unique, number_of

CHECKOUT = Path(__file__).resolve().parents[2]
_RESERVED_INVENTORIES = ("hosts", "examples")
L = TypeVar("L", bound="BaseLab[Any]")
_CONTAINERS = "containers"  # what a state file without a kind is of


class BaseLab(ABC, Generic[H]):
    """A lab of this checkout, up or not.

    Args:
        name: hosts, inventory and cluster are called after it.
        report: gets a line for every step.
        checkout: where `.raytools/` and `inventory/` are.
    """

    KIND: ClassVar[str]
    TARGETS: ClassVar[files.Targets]
    spec: type[H]

    def __init__(self, name: str, report: Report = say, checkout: Path = CHECKOUT) -> None:
        self.name = check_lab_name(name)
        if name in _RESERVED_INVENTORIES:
            raise LabError(f"LAB is {name!r}", expected="another name: inventory/ has that file already")
        self.report = report
        self.checkout = checkout
        self.state_dir = checkout / ".raytools" / "lab" / name
        self.inventory = checkout / "inventory" / f"{name}.yml"
        self.cluster_yaml = self.state_dir / "cluster.yaml"
        self.ssh_config = self.state_dir / "ssh_config"
        self.known_hosts = checkout / ".raytools" / "ssh" / "known_hosts"
        self.key = self.state_dir / "id_ed25519"

    # --- what it is ---

    @property
    def hosts(self) -> list[H]:
        """The hosts that were asked for last; none if the lab is down."""
        return [self.spec.from_json(each) for each in self._state().get("hosts", [])]

    @property
    @abstractmethod
    def addresses(self) -> dict[str, str]:
        """Host name -> the address at which the other hosts reach it."""

    @property
    @abstractmethod
    def endpoints(self) -> dict[str, Endpoint]:
        """Host name -> where this machine reaches its sshd."""

    @abstractmethod
    def is_running(self, host: str) -> bool:
        """Whether it is powered on."""

    # --- up and down ---

    @abstractmethod
    def up(self, hosts: int | Sequence[H]) -> None:
        """Makes the lab consist of exactly these hosts, all of them up. Hosts that are so already run on.

        Args:
            hosts: how many plain ones, or which.

        Raises:
            LabError: something is missing, or a host did not come up; the rest is left for `down`.
        """

    @abstractmethod
    def down(self) -> None:
        """Leaves nothing of the lab but the cached image."""

    def add_host(self, spec: H | None = None) -> H:
        """One more host; the others run on.

        Args:
            spec: the host; None: a plain one with the next free number.
        """
        before = self.hosts
        if not before:
            raise LabError(
                f"The lab {self.name} is down", fix=f"make {self.TARGETS.up} LAB={self.name}"
            )  # fmt: skip
        names = {host.name for host in before}
        if spec is None:
            spec = self.spec(next(f"n{i}" for i in range(1, len(before) + 2) if f"n{i}" not in names))
        self.up([*before, spec])
        return spec

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

    # --- its files ---

    def _asked(self, hosts: int | Sequence[H]) -> list[H]:
        """The hosts one by one; refuses what cannot be, and what would overwrite a person's inventory."""
        specs = number_of(hosts, self.spec) if isinstance(hosts, int) else list(hosts)
        check_unique(specs)
        if self.inventory.exists() and not self._inventory_is_ours():
            raise LabError(f"{self.inventory} is not a lab's inventory", fix="Take another name: LAB=…")
        return specs

    def _make_keys(self, specs: Sequence[H]) -> None:
        (self.state_dir / "hosts").mkdir(mode=0o700, exist_ok=True)
        keys.ensure_key(self.key, f"lab {self.name}")
        for spec in specs:
            keys.ensure_key(self._host_key(spec.name), spec.name)

    def _emulated(self) -> bool:
        """Whether processors are much slower than this machine's."""
        return False

    def _write_files(self, specs: Sequence[H], storage: str) -> None:
        """What Ansible, raytools and ssh need to know of these hosts.

        Args:
            specs: all of the lab's.
            storage: what cluster.yaml says of it.
        """
        endpoints = self.endpoints
        lines = [keys.entry(*endpoints[s.name], self._host_public(s.name), self.name) for s in specs]
        keys.set_entries(self.known_hosts, self.name, lines)
        config = files.ssh_config_text(specs, endpoints, self.key, self.known_hosts, self.TARGETS)
        keys.replace(self.ssh_config, config)
        keys.replace(
            self.cluster_yaml,
            files.cluster_text(self.name, storage, self.TARGETS, emulated=self._emulated()),
            0o644,
        )
        self._share_project_state()
        self.inventory.parent.mkdir(exist_ok=True)
        inventory = files.inventory_text(
            self.name, specs, endpoints, self.addresses, self.key, self.TARGETS
        )  # fmt: skip
        keys.replace(self.inventory, inventory, 0o644)

    def _share_project_state(self) -> None:
        """raytools keeps known hosts and built environments beside cluster.yaml: here, the checkout's own."""
        link = self.state_dir / ".raytools"
        if not link.is_symlink():
            shutil.rmtree(link, ignore_errors=True)
            link.symlink_to(self.checkout / ".raytools")

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
        header = files.inventory_header(self.TARGETS)
        return self.inventory.exists() and self.inventory.read_text().startswith(header)

    # --- small things ---

    def _state_file(self) -> Path:
        return self.state_dir / "lab.json"

    def _state(self) -> dict[str, Any]:
        return read_state(self.state_dir)

    def _save(self, specs: Sequence[H], **more: Any) -> None:
        """Writes the state file: the hosts that are asked for, and what the kind of lab adds."""
        state = {"kind": self.KIND, "hosts": [spec.as_json() for spec in specs], **more}
        keys.replace(self._state_file(), json.dumps(state, indent=2) + "\n")

    def _known(self, host: str) -> H:
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

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """This process alone changes the lab, which is of this kind.

        Raises:
            LabError: another process is at it, or the name is that of a lab of the other kind.
        """
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.state_dir.with_name(f"{self.name}.lock")
        with keys.locked(lock, f"The lab {self.name}", wait=False):
            found = kind_of(self._state())
            if found not in (None, self.KIND):
                raise LabError(
                    f"LAB is {self.name!r}, which is a lab of {found}",
                    expected=f"one of {self.KIND}, or a name that no lab has",
                )
            yield


@contextmanager
def running(lab: L, hosts: int | Sequence[Any], failed: Callable[[L], None] = lambda _: None) -> Iterator[L]:
    """A lab for as long as the block runs, and nothing of it afterwards.

    Args:
        lab: which one; it is brought up.
        hosts: how many plain ones, or which.
        failed: is called before the lab goes, if the block or the lab's start has failed.
    """
    try:
        lab.up(hosts)
        yield lab
    except Exception:  # whatever it was: it goes on upwards, when what the hosts said is safe
        failed(lab)
        raise
    finally:
        lab.down()


def labs_of(kind: str, checkout: Path = CHECKOUT) -> list[str]:
    """The names of this checkout's labs of a kind that left a state directory."""
    names = []
    with suppress(FileNotFoundError):
        for path in sorted((checkout / ".raytools" / "lab").iterdir()):
            # a directory without a state file is what a killed `up` has left: nobody's, so everybody's
            if path.is_dir() and kind_of(read_state(path)) in (None, kind):
                names.append(path.name)
    return names


def read_state(state_dir: Path) -> dict[str, Any]:
    """A lab's state file; empty if it is down."""
    try:
        found: dict[str, Any] = json.loads((state_dir / "lab.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def kind_of(state: Mapping[str, Any]) -> str | None:
    """What a lab is made of; None if there is none."""
    return str(state.get("kind", _CONTAINERS)) if state else None


def count_of(number: int, what: str = "host") -> str:
    """`1 host`, `2 hosts`, `no hosts`."""
    return f"1 {what}" if number == 1 else f"{number or 'no'} {what}s"
