"""The pure parts of the lab of virtual machines: what is asked for, what qemu is told, what it finds."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import base, debian, files
from tests.lab.containers.lab import Lab as ContainerLab
from tests.lab.hosts import Endpoint, LabError, number_of, parse
from tests.lab.machines import acceleration, dependencies, image, network, processes, qemu, qmp
from tests.lab.machines.hosts import MachineSpec
from tests.lab.machines.lab import Lab, check_memory, storage_of

STATE = Path("/checkout/.raytools/lab/vm")
IMAGE = image.Image(Path("/cache/0123456789ab"))
GROUP = "239.1.2.3:20001"


def command(spec: MachineSpec, directory: Path = STATE / "machines" / "n1", **other: Any) -> list[str]:
    given = {"accelerator": "tcg", "address": "10.92.0.11", "port": 22100, "group": GROUP, **other}
    return qemu.command(spec, lab="vm", files=qemu.MachineFiles(directory), image=IMAGE, **given)


# --- what is asked for ---


def test_a_machine_is_described_in_one_word() -> None:
    text = "n2:cpus=1,memory=3g,user=alice,port=2222,become=no,without=libgomp1,var.a=b"
    assert parse(text, MachineSpec) == MachineSpec(
        "n2", cpus=1, memory="3g", user="alice", port=2222, become=False, without=("libgomp1",),
        variables={"a": "b"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("n1:cpus=0-1", "cpus is '0-1', expected a number"),
        ("n1:cpus=0", "cpus is 0, expected 1 to 64"),
        ("n1:memory=lots", "expected a size"),
        ("n1:shm=1g", "unknown option 'shm', expected cpus, memory, port,"),
        ("n1:port=70000", "expected 1 to 65535"),
    ],
)
def test_a_wrong_machine_is_told_with_what_would_be_right(text: str, told: str) -> None:
    with pytest.raises(LabError, match=told):
        parse(text, MachineSpec)


def test_a_machine_survives_the_state_file() -> None:
    spec = parse("n1:cpus=1,port=2200,extra=-S,var.a=b", MachineSpec)
    assert MachineSpec.from_json(spec.as_json()) == spec


def test_machines_that_do_not_fit_into_memory_are_refused() -> None:
    check_memory(number_of(2, MachineSpec), total_bytes=8 * 2**30)
    with pytest.raises(LabError, match=r"12\.0 GiB of memory, expected at most the 8\.0 GiB"):
        check_memory(number_of(3, MachineSpec), total_bytes=8 * 2**30)


# --- what is written ---


def test_the_inventory_says_how_to_get_there_and_how_machines_reach_each_other() -> None:
    hosts = number_of(2, MachineSpec)
    endpoints = {"n1": Endpoint("127.0.0.1", 22100), "n2": Endpoint("127.0.0.1", 22101)}
    addresses = {"n1": "10.92.0.11", "n2": "10.92.0.12"}
    text = files.inventory_text("vm", hosts, endpoints, addresses, Path("/c/key"), Lab.TARGETS)
    assert "`make vm-down LAB=vm` removes it" in text
    inventory = yaml.safe_load(text)
    assert inventory["workers"]["hosts"]["n2"] == {
        "ansible_host": "127.0.0.1",
        "ansible_port": 22101,
        "raytools_address": "10.92.0.12",
    }


def test_the_head_serves_the_storage_unless_somebody_could_not_mount_it() -> None:
    hosts = number_of(2, MachineSpec)
    assert yaml.safe_load(storage_of(hosts))["server"] == "n1"
    assert yaml.safe_load(storage_of([*hosts, MachineSpec("n3", user="alice")])) == {"type": "local"}


def test_a_cable_that_is_pulled_does_not_take_the_address_away() -> None:
    settings = network.settings("10.92.0.11")
    text, _ = settings["/etc/systemd/network/20-cluster.network"]
    assert f"MACAddress={network.cluster_mac('10.92.0.11')}" in text
    assert "Address=10.92.0.11/24" in text
    assert "IgnoreCarrierLoss=yes" in text


# --- addresses and ports ---


def test_a_machine_keeps_its_address_when_others_come_and_go() -> None:
    first = network.choose_addresses(["n1", "n2", "n3"], {})
    assert first == {"n1": "10.92.0.11", "n2": "10.92.0.12", "n3": "10.92.0.13"}
    later = network.choose_addresses(["n3", "n4"], first)
    assert later["n3"] == first["n3"]
    assert later["n4"] not in first.values()


def test_labs_do_not_share_a_network() -> None:
    other = STATE.with_name("vm-b")
    assert network.multicast_group(STATE) == network.multicast_group(STATE)
    assert network.multicast_group(STATE) != network.multicast_group(other)
    assert network.multicast_group(STATE).startswith("239.")


def test_a_port_that_is_in_use_is_not_chosen() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not network.is_free(listener.getsockname()[1])
    ports = network.choose_ports(["n1", "n2"], {"n2": 22100}, {22101})
    assert ports["n2"] == 22100
    assert ports["n1"] not in (22100, 22101)


# --- qemu ---


def test_a_machine_gets_its_cpus_memory_and_disks() -> None:
    line = " ".join(command(MachineSpec("n1", cpus=1, memory="3g", extra=("-S",))))
    for expected in (
        f"-accel tcg,thread=multi -cpu {qemu.EMULATED_CPU}",
        "-smp 1 -m 3g",
        "systemd.hostname=n1",
        "disk.qcow2,if=virtio,cache=unsafe,format=qcow2",
        "settings.tar,if=virtio,cache=unsafe,format=raw,readonly=on",
        "-kernel /cache/0123456789ab/vmlinuz",
    ):
        assert expected in line
    assert line.endswith("-daemonize -S")


def test_nothing_leads_out_of_a_machine_and_only_the_loopback_in() -> None:
    nets = [word for word in command(MachineSpec("n1")) if word.startswith(("user,", "socket,"))]
    assert nets == [
        "user,id=control,restrict=on,hostfwd=tcp:127.0.0.1:22100-:22",
        f"socket,id=cluster,mcast={GROUP},localaddr=127.0.0.1",
    ]


def test_native_speed_is_asked_for_where_it_was_proved() -> None:
    line = " ".join(command(MachineSpec("n1"), accelerator="kvm"))
    assert "-accel kvm -cpu host" in line
    assert "tcg" not in line
    assert "norandmaps" not in line  # addresses as on users' machines, where that costs nothing


def test_a_comma_in_a_path_does_not_end_an_option() -> None:
    line = " ".join(command(MachineSpec("n1"), Path("/a,b/n1")))
    assert "file=/a,,b/n1/disk.qcow2," in line
    assert "-pidfile /a,b/n1/qemu.pid" in line


# --- which processes are the lab's ---


def test_a_process_is_recognized_by_the_machine_it_was_started_for() -> None:
    argv = command(MachineSpec("n1"))
    assert processes.machine_of(argv) == STATE / "machines" / "n1"
    assert processes.machine_of(["/usr/bin/vi", *argv[1:]]) is None
    assert processes.machine_of(argv[: argv.index("-pidfile") + 1]) is None
    assert processes.machine_of([]) is None


def test_a_pid_that_is_another_process_by_now_is_left_alone() -> None:
    processes.kill([processes.Running(os.getpid(), STATE / "machines" / "n1")])  # this test lives on


def test_no_qemu_means_an_error_that_names_the_socket(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"did not take `stop` at .*qmp\.sock"):
        qmp.request(tmp_path / "qmp.sock", "stop")


# --- the image, acceleration, and what is needed ---


def test_another_recipe_or_disk_is_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.key()
    assert image.key() == before
    monkeypatch.setattr(image, "DISK_SIZE", "9G")
    bigger = image.key()
    monkeypatch.setattr(debian, "RELEASE", "trixie")
    assert len({before, bigger, image.key()}) == 3


def test_acceleration_is_tried_once_per_boot_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []
    monkeypatch.setattr(acceleration, "_obstacle", lambda: None)
    monkeypatch.setattr(acceleration, "_trial", lambda _: trials.append(1) or "a guest did not boot")
    made = image.Image(tmp_path / "0123456789ab")
    said: list[str] = []
    found = acceleration.detect(made, said.append)
    assert found.accelerator == "tcg"
    assert said == ["machines run emulated: a guest did not boot"]
    assert acceleration.detect(made, said.append) == found
    assert len(trials) == 1
    next(tmp_path.glob("acceleration-*")).write_text("{}")  # of another version
    acceleration.detect(made, said.append)
    assert len(trials) == 2


def test_what_is_missing_is_named_with_its_command() -> None:
    assert dependencies.missing_packages(lambda program: "qemu" not in program) == [
        "qemu-system-x86",
        "qemu-utils",
    ]


# --- two kinds of labs side by side ---


def test_a_lab_of_the_other_kind_is_not_touched(tmp_path: Path) -> None:
    lab = Lab("one", checkout=tmp_path)
    lab.state_dir.mkdir(parents=True)
    lab._save([MachineSpec("n1")])
    assert base.labs_of(ContainerLab.KIND, tmp_path) == []
    assert base.labs_of(Lab.KIND, tmp_path) == ["one"]
    with (
        pytest.raises(LabError, match="'one', which is a lab of virtual machines"),
        ContainerLab("one", checkout=tmp_path)._locked(),
    ):
        pass


def test_an_up_that_is_taken_back_forgets_the_new_machine_and_keeps_the_old_one(tmp_path: Path) -> None:
    lab = Lab("two", lambda _: None, checkout=tmp_path)
    hosts = number_of(2, MachineSpec)
    for name in ("n1", "n2", "gone"):
        (lab._machines / name).mkdir(parents=True)
    (lab._machines / "n1" / "digest").write_text("as asked for")
    lab._make_keys(hosts)
    ports = {"n1": 22100, "n2": 22101}
    lab._save(
        hosts, addresses=network.choose_addresses(list(ports), {}), ports=ports, image="i", accelerator="tcg"
    )
    lab._take_back()
    assert [host.name for host in lab.hosts] == list(lab.addresses) == list(lab.endpoints) == ["n1"]
    assert [path.name for path in lab._machines.iterdir()] == ["n1"]
    assert "n2" not in lab.inventory.read_text()


def test_down_of_a_lab_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    Lab("none", lambda _: None, checkout=tmp_path).down()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".raytools", "lab"]
