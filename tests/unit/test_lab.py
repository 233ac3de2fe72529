"""The pure parts of the lab of containers: what is asked for, and what is written for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import debian, files, keys, packages
from tests.lab.addresses import Subnet, host_address, mac_address
from tests.lab.containers import container, dependencies, image, network
from tests.lab.containers.hosts import HostSpec, parse_host, plain_hosts
from tests.lab.containers.lab import Lab
from tests.lab.hosts import Endpoint, LabError, check_unique

KEY = "ssh-ed25519 AAAAkey n1"
ADDRESSES = {"n1": "10.91.7.11", "n2": "10.91.7.12"}


def inventory_of(hosts: list[HostSpec]) -> dict[str, Any]:
    endpoints = {host.name: Endpoint(ADDRESSES[host.name], host.port) for host in hosts}
    text = files.inventory_text("lab", hosts, endpoints, ADDRESSES, Path("/c/key"), Lab.TARGETS)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


# --- what is asked for ---


def test_a_host_is_described_in_one_word() -> None:
    spec = parse_host(
        "n3:cpus=0+1,memory=2g,shm=256m,without=libgomp1,without=python3,user=alice,port=2222,"
        "become=no,var.raytools_root=/x"
    )
    assert spec == HostSpec(
        "n3", cpus="0,1", memory="2g", shm="256m", without=("libgomp1", "python3"), user="alice",
        port=2222, become=False, variables={"raytools_root": "/x"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("n1:colour=red", "unknown option 'colour'"),
        ("n1:memory=lots", "expected a size"),
        ("n1:user=bob", "expected one of admin, root, alice"),
        ("n1:port=ssh", "expected a number"),
        ("n1:become=perhaps", "expected yes or no"),
        ("n1:cpus", "expected key=value"),
        ("N1", "expected a name such as n1"),
    ],
)
def test_a_wrong_host_is_told_with_what_would_be_right(text: str, told: str) -> None:
    with pytest.raises(LabError, match=told):
        parse_host(text)


def test_special_hosts_take_the_places_of_plain_ones() -> None:
    special = HostSpec("n2", memory="1g")
    assert plain_hosts(3, [special]) == [HostSpec("n1"), special, HostSpec("n3")]
    with pytest.raises(LabError, match="n1 to n2"):
        plain_hosts(2, [HostSpec("n3")])


def test_two_hosts_of_one_name_are_refused() -> None:
    with pytest.raises(LabError, match="two hosts are called n1"):
        check_unique([HostSpec("n1"), HostSpec("n1")])


def test_a_plain_user_does_not_become_root_unless_told_to() -> None:
    assert HostSpec("n1").becomes_root
    assert not HostSpec("n1", user="alice").becomes_root
    assert not HostSpec("n1", become=False).becomes_root


def test_a_host_survives_the_state_file() -> None:
    spec = parse_host("n1:without=libgomp1,extra=--read-only,var.a=b")
    assert HostSpec.from_json(spec.as_json()) == spec


@pytest.mark.parametrize("name", ["Lab", "1", "a" * 25, "lab_", "hosts", ""])
def test_a_name_that_cannot_be_a_lab_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="LAB is"):
        Lab(name, checkout=tmp_path)


# --- what is written ---


def test_the_first_host_is_the_head_and_common_variables_are_said_once() -> None:
    inventory = inventory_of(plain_hosts(2))
    assert inventory["all"]["vars"] == {
        "ansible_user": "admin",
        "ansible_become": True,
        "ansible_ssh_private_key_file": "/c/key",
    }
    assert inventory["head"]["hosts"] == {"n1": {"ansible_host": "10.91.7.11"}}
    assert inventory["workers"]["hosts"] == {"n2": {"ansible_host": "10.91.7.12"}}


def test_a_host_that_differs_says_so_itself() -> None:
    hosts = [HostSpec("n1"), HostSpec("n2", user="alice", port=2222)]
    inventory = inventory_of(hosts)
    assert inventory["workers"]["hosts"]["n2"] == {
        "ansible_host": "10.91.7.12",
        "ansible_user": "alice",
        "ansible_port": 2222,
        "ansible_become": False,
    }
    assert inventory["all"]["vars"]["raytools_root"] == "/home/alice/raytools"


def test_one_host_is_a_head_without_workers() -> None:
    inventory = inventory_of(plain_hosts(1))
    assert inventory["workers"]["hosts"] == {}


def test_every_host_knows_all_names() -> None:
    text = files.hosts_text("n1", ADDRESSES)
    assert "10.91.7.11 n1\n" in text
    assert "10.91.7.12 n2\n" in text


def test_known_hosts_keeps_other_lines_and_drops_the_labs_old_ones() -> None:
    other = "gate ssh-ed25519 AAAAother me@home"
    killed = keys.entry("10.91.7.11", 22, KEY, "killed")
    alive = keys.entry("10.91.9.11", 22, KEY, "alive")
    old = keys.entry("10.91.8.11", 22, KEY, "lab")
    new = keys.entry("10.91.7.11", 22, KEY, "lab")
    text = keys.with_entries("\n".join([other, "# a comment", killed, alive, old]), "lab", [new])
    assert text.splitlines() == [other, "# a comment", alive, new]
    assert keys.with_entries(text, "lab", []).splitlines() == [other, "# a comment", alive]


def test_known_hosts_names_a_port_that_is_not_22() -> None:
    assert keys.entry("10.91.7.11", 2222, KEY, "lab").startswith("[10.91.7.11]:2222 ssh-ed25519 AAAAkey ")


def test_known_hosts_is_replaced_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "ssh" / "known_hosts"
    keys.set_entries(path, "lab", [keys.entry("10.91.7.11", 22, KEY, "lab")])
    assert path.stat().st_mode & 0o777 == 0o600
    keys.set_entries(path, "lab", [])
    assert path.read_text() == ""


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path: Path) -> None:
    lock = tmp_path / "lab.lock"
    held_again = keys.locked(lock, "The lab lab", wait=False)
    with keys.locked(lock, "The lab lab"):
        with pytest.raises(LabError, match="being changed by another process"), held_again:
            pass
        assert lock.exists()
    assert not lock.exists()


def test_a_lock_leaves_no_file_when_its_holder_is_interrupted(tmp_path: Path) -> None:
    lock = tmp_path / "lab.lock"
    with pytest.raises(KeyboardInterrupt), keys.locked(lock, "The lab lab", wait=False):
        raise KeyboardInterrupt
    assert not lock.exists()


# --- addresses ---


def test_a_lab_keeps_its_subnet_unless_that_is_in_use() -> None:
    first = network.choose_subnet("lab", [])
    assert network.choose_subnet("lab", [], "10.91.3.0/24") == Subnet("10.91.3.0/24")
    assert not network.choose_subnet("lab", [first]).overlaps(first)


def test_no_subnet_is_taken_from_a_routed_range() -> None:
    with pytest.raises(LabError, match="No free subnet"):
        network.choose_subnet("lab", [Subnet("10.0.0.0/8")])


def test_every_address_has_a_mac_of_its_own() -> None:
    subnet = Subnet("10.91.7.0/24")
    addresses = [host_address(subnet, index) for index in range(32)]
    assert addresses[0] == "10.91.7.11"
    assert len({mac_address(address) for address in addresses}) == 32


# --- podman's arguments ---


def test_a_hosts_limits_reach_podman() -> None:
    arguments = container.create_arguments(
        HostSpec("n1", cpus="0", memory="2g", shm="256m", extra=("--env", "A=b")),
        container="raytools-lab-n1", address="10.91.7.11", net="raytools-lab",
        cgroup_parent="/raytools-lab-lab", shared=Path("/s"), labels={"raytools.lab": "lab"},
        image="localhost/raytools-lab:1",
    )  # fmt: skip
    line = " ".join(arguments)
    for expected in (
        "--cpuset-cpus 0",
        "--memory 2g --memory-swap 2g",
        "--shm-size 256m",
        "--ip 10.91.7.11",
        "--volume /s:/shared",
        "--cgroupns private",
        "--label raytools.lab=lab",
    ):
        assert expected in line
    assert line.endswith("--env A=b localhost/raytools-lab:1")


def test_cgroups_of_a_lab_are_removed_and_no_others(tmp_path: Path) -> None:
    for hierarchy in ("memory", "cpuset"):
        (tmp_path / hierarchy / "raytools-lab-lab" / "libpod-1" / "system.slice").mkdir(parents=True)
        (tmp_path / hierarchy / "raytools-lab-other").mkdir()
    roots = [tmp_path / "memory", tmp_path / "cpuset"]
    assert container.remove_cgroups("raytools-lab-lab", roots) == []
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["raytools-lab-other"] * 2


# --- the image and what is needed ---


def test_only_the_releases_apt_sources_are_used() -> None:
    ours = "Types: deb\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\n"
    assert debian.release_stanzas(f"{ours}\n# x\nTypes: deb\nSuites: nodistro\n") == ours
    assert debian.release_stanzas("Suites: bookworm\nEnabled: no\n") == ""
    line = "deb [signed-by=/k x=y] http://a/debian bookworm main\n"
    assert (
        debian.release_lines(f"{line}deb http://b/c cloud-bookworm main\n# deb http://a bookworm\n") == line
    )


def test_another_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.tag()
    assert image.tag() == before
    monkeypatch.setattr(debian, "RELEASE", "trixie")
    assert image.tag() != before


def test_what_is_missing_is_named_with_its_command() -> None:
    missing = dependencies.missing_packages(lambda program: program != "runc", lambda _: False)
    assert missing == ["aardvark-dns", "netavark", "runc"]
    assert packages.command_for(missing).endswith(
        "apt-get install -y --no-install-recommends aardvark-dns netavark runc"
    )
