"""Faults for real hosts: how each is made and taken back, and what the doctor has to say to it.

In a script `@unit@`, `@raylet@`, `@root@`, `@run@` and `@n1@` to `@n3@` stand for the name of the unit, the
pid of the raylet on that host, the root of raytools, `raytools run` with the toolkit there, and addresses.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.lab.cluster import ROOT, Cluster, until

Options = tuple[str, ...]
Injected = contextlib.AbstractContextManager["Path | None"]
NODE = "n2"  # where faults are made, unless said otherwise
BUSY_S = 60


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        name: of the test, and of the row in the table.
        expected: `CODE node` of each finding that is a warning or an error; `CODE` alone: of the cluster.
        make: makes it while its block runs; gives the inventory to use, None: the lab's.
        level: of the doctor.
        options: further ones of the doctor.
    """

    name: str
    expected: frozenset[str]
    make: Callable[[Cluster], Injected]
    level: str = "hosts"
    options: Options = ()


def on_host(
    make: str, undo: str, node: str = NODE, ready: str = "", healthy: bool = False
) -> Callable[[Cluster], Injected]:
    """A fault that shell scripts make and take back.

    Args:
        make: the script that makes it.
        undo: the script that takes it back.
        node: where.
        ready: a script that succeeds when the fault is there.
        healthy: Ray was restarted: wait until all nodes are alive, both times.
    """

    @contextlib.contextmanager
    def injected(cluster: Cluster) -> Iterator[None]:
        def run(script: str, check: bool = True) -> str:
            return cluster.sh(node, _filled(script, cluster, node), check=check)

        try:
            run(make)
            if ready:
                until(
                    lambda: run(f"({ready}) >/dev/null 2>&1 && echo yes", check=False),
                    60,
                    "the fault is there",
                )
            if healthy:
                cluster.await_healthy(90)
            yield
        finally:
            run(undo)
            if healthy:
                cluster.await_healthy(90)

    return injected


def _filled(script: str, cluster: Cluster, node: str) -> str:
    if "@raylet@" in script:
        script = script.replace("@raylet@", str(cluster.raylet(node)))
    for name, address in cluster.lab.addresses.items():
        script = script.replace(f"@{name}@", address)
    script = script.replace("@run@", _RUN)
    return script.replace("@unit@", cluster.unit_name).replace("@root@", ROOT)


def in_cluster_yaml(change: Callable[[str], str]) -> Callable[[Cluster], Injected]:
    """A fault in what is declared."""

    @contextlib.contextmanager
    def injected(cluster: Cluster) -> Iterator[None]:
        with cluster.changed_file(cluster.lab.cluster_yaml, change):
            yield

    return injected


def in_inventory(**variables: object) -> Callable[[Cluster], Injected]:
    """Variables of one host that are wrong."""
    return lambda cluster: cluster.changed_inventory(
        lambda data: data["workers"]["hosts"][NODE].update(variables)
    )


def without_host(name: str) -> Callable[[Cluster], Injected]:
    """An inventory that lacks a host whose Ray runs."""
    return lambda cluster: cluster.changed_inventory(lambda data: data["workers"]["hosts"].pop(name))


@contextlib.contextmanager
def second_address(cluster: Cluster) -> Iterator[Path | None]:
    """ssh goes to an address that a worker has beside the cluster's, which nothing closes for Ray."""
    first = cluster.lab.addresses[NODE]
    second = first.rpartition(".")[0] + ".200"

    def also_under(known_hosts: str) -> str:
        its_own = [line for line in known_hosts.splitlines() if line.startswith(f"{first} ")]
        return "\n".join([known_hosts.rstrip(), *(line.replace(first, second, 1) for line in its_own), ""])

    change = in_inventory(ansible_host=second, raytools_address=first)
    cluster.sh(NODE, f"ip addr add {second}/24 dev eth0")
    try:
        with cluster.changed_file(cluster.lab.known_hosts, also_under), change(cluster) as inventory:
            yield inventory
    finally:
        cluster.sh(NODE, f"ip addr del {second}/24 dev eth0")


@contextlib.contextmanager
def powered_off(cluster: Cluster) -> Iterator[None]:
    cluster.lab.power_off("n3", hard=True)
    try:
        yield
    finally:
        cluster.lab.power_on("n3")
        cluster.await_healthy(90)


@contextlib.contextmanager
def damaged_lock(cluster: Cluster) -> Iterator[None]:
    path = cluster.directory / ".raytools" / "locks" / "automl.lock.yaml"
    with cluster.changed_file(path, lambda text: text[: len(text) // 2]):
        yield


def with_top_level(key: str, value: object) -> Callable[[str], str]:
    """cluster.yaml with one key more, or another value of it; dots lead into sections."""

    def change(text: str) -> str:
        data = yaml.safe_load(text) or {}
        at = data
        *parents, last = key.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
        return str(yaml.safe_dump(data))

    return change


def in_file(path: str, command: str) -> tuple[str, str]:
    """Scripts that change a file by a sed command, and bring it back as it was, times included."""
    return (
        f"cp -a {path} {path}.before && sed -i '{command}' {path}",
        f"mv -f {path}.before {path}",
    )


def shown_instead(path: str, command: str) -> tuple[str, str]:
    """Scripts that make the kernel's file read otherwise."""
    beside = "/run/faulty" + re.sub(r"\W", "-", path)
    return (
        f"sed '{command}' {path} >{beside} && mount --bind {beside} {path}",
        f"umount {path}; rm -f {beside}",
    )


def program(name: str, text: str) -> tuple[str, str]:
    """Scripts that put a program first in the search path, and remove it."""
    path = f"/usr/local/sbin/{name}"
    return f"printf '%s\\n' '{text}' >{path} && chmod 755 {path}", f"rm -f {path}"


def drop_in(*lines: str) -> tuple[str, str]:
    """Scripts that restart Ray with lines added to its unit, and as it was."""
    directory, text = "/etc/systemd/system/@unit@.d", "\\n".join(("[Service]", *lines))
    make = f"mkdir -p {directory} && printf '{text}\\n' >{directory}/faulty.conf"
    restart = "systemctl daemon-reload && systemctl restart @unit@"
    return f"{make} && {restart}", f"rm -rf {directory}; {restart}"


def background(command: str, mark: str) -> tuple[str, str]:
    """Scripts that leave a process behind, and end it by its pid."""
    return (
        f"setsid {command} >/dev/null 2>&1 </dev/null & echo $! >/run/{mark}.pid",
        f"kill -9 $(cat /run/{mark}.pid) 2>/dev/null; rm -f /run/{mark}.pid",
    )


# What nvidia-smi prints, in its forms for --query-gpu and --query-compute-apps, as recorded from a machine
_GPU = "0, GPU-5a3c8d9e-1111-2222-3333-444455556666, NVIDIA A10, 23028"
_NVIDIA_SMI = f"""#!/bin/sh
case "$*" in
  *query-gpu=index*) echo "{_GPU}";;
  *query-gpu=driver*) echo "550.54.15";;
  *) ;;
esac"""
_AS_ALICE = "setpriv --reuid=alice --regid=alice --init-groups --reset-env"
_HOGS = 'python3 -c "import time; held = b\\"x\\" * (@bytes@); time.sleep(600)"'
_VFORK = (
    'python3 -c "import ctypes, time; pid = ctypes.CDLL(None).vfork(); time.sleep(600) if pid == 0 else None"'
)
_ZOMBIES = 'python3 -c "import os, time; [os.fork() or os._exit(0) for _ in range(150)]; time.sleep(600)"'
_OTHER_RAY = (
    "@root@/envs/current/bin/ray start --head --port=7001 --node-manager-port=10291 --num-cpus=1 "
    "--min-worker-port=21000 --max-worker-port=21100 --ray-client-server-port=10011 "
    "--include-dashboard=false --object-store-memory=80000000 --temp-dir=/tmp/ray-of-alice"
)
# what starts takes CPUs, which is another finding; a process that ended between takes its time away
_ALICE_IS_IDLE = (
    "ticks() { for pid in $(pgrep -u alice); do cat /proc/$pid/stat; done | sed 's/.*) //' | "
    "awk '{sum += $12 + $13} END {print sum + 0}'; }; "
    "before=$(ticks); sleep 2; used=$(($(ticks) - before)); [ $used -ge 0 ] && [ $used -lt 20 ]"
)
_RUN = (
    "env PYTHONPATH=$(echo @root@/toolkit/*/) RAYTOOLS_ROOT=@root@ @root@/envs/current/bin/python "
    "-m raytools run"
)
_SITE = "$(ls -d @root@/envs/current/lib/python3*/site-packages)"


def expect(*findings: str) -> frozenset[str]:
    return frozenset(findings)


FAULTS: tuple[Fault, ...] = (
    # RT0xx
    Fault(
        "the environment was edited after its lock", expect("RT001"),
        in_cluster_yaml(with_top_level("environment.pip", ["ray[default]==2.58.1", "six"])), "config",
    ),
    Fault("the lock is damaged", expect("RT001"), damaged_lock, "config"),
    Fault(
        "more slots than CPUs", expect("RT001"), in_inventory(raytools={"slots": {"per_node": 50}}),
    ),
    Fault(
        "the plan was not brought to a node", expect("RT002 n2"),
        in_inventory(raytools={"runs": {"grace": "7s"}}),
    ),
    Fault(
        "a waiver is left over", expect("RT003"),
        in_cluster_yaml(with_top_level("doctor.waive", [{"code": "RT203", "reason": "swap is on"}])),
    ),
    Fault(
        "versions that cannot work together", expect("RT001", "RT004"),
        in_cluster_yaml(
            with_top_level(
                "environment", {"name": "other", "pip": ["ray[default]==2.60.0", "autogluon.tabular==1.6.3"]}
            )
        ),
        "config",
    ),
    # RT1xx
    Fault("a slot's CPU is not the raylet's", expect("RT102 n2"), on_host(
        "taskset -cp 0 @raylet@", "taskset -cp 0-1 @raylet@"), "cluster"),
    Fault("other thread variables", expect("RT104 n2"), on_host(
        *drop_in("Environment=OPENBLAS_NUM_THREADS=1"), healthy=True), "cluster"),
    Fault("another processor", expect("RT105 n2"), on_host(
        *shown_instead("/proc/cpuinfo", "s/^model name.*/model name\\t: Another CPU/"))),
    Fault("two slots have the same CPU", expect("RT002 n2", "RT108 n2", "RT206 n2"), on_host(
        'cp -a @root@/node.json @root@/node.json.before; python3 -c "import json; p=\\"@root@/node.json\\"; '
        'n=json.load(open(p)); n[\\"slots\\"] += [dict(n[\\"slots\\"][0], index=1)]; '
        'json.dump(n, open(p, \\"w\\"))"',
        "mv -f @root@/node.json.before @root@/node.json")),
    # RT2xx
    Fault("swap is on", expect("RT203 n2"), on_host(
        *shown_instead("/proc/meminfo", "s/^SwapTotal.*/SwapTotal:        1048576 kB/"))),
    # RT3xx
    Fault("a GPU that nobody has planned with", expect("RT002 n2", "RT301 n2"), on_host(
        *program("nvidia-smi", _NVIDIA_SMI)), "cluster"),
    # RT4xx
    Fault("a node is not provisioned", expect("RT400 n2"), on_host(
        "mv @root@/node.json @root@/node.json.away", "mv @root@/node.json.away @root@/node.json")),
    Fault("a file of the environment was edited", expect("RT401 n2"), on_host(
        *in_file(f"{_SITE}/psutil/__init__.py", "$ a # edited"))),
    Fault("a file of the environment is gone", expect("RT401 n2"), on_host(
        f"mv {_SITE}/psutil/__init__.py /root/gone.py", f"mv /root/gone.py {_SITE}/psutil/__init__.py")),
    Fault("a file was added to the environment", expect("RT401 n2"), on_host(
        f"echo x=1 >{_SITE}/sitecustomize.py", f"rm {_SITE}/sitecustomize.py")),
    Fault("libgomp is neither in the environment nor on the host", expect("RT401 n2", "RT402 n2"), on_host(
        "mkdir /root/away && mv /usr/lib/x86_64-linux-gnu/libgomp.so.1* /root/away && ldconfig; "
        "mv @root@/envs/current/lib/libgomp.so.1 /root/environments",
        "mv /root/away/* /usr/lib/x86_64-linux-gnu/ && rmdir /root/away && ldconfig; "
        "mv /root/environments @root@/envs/current/lib/libgomp.so.1")),
    # RT5xx
    Fault("the storage is full", expect("RT501 n2"), on_host(
        "mount -t tmpfs -o size=20m tmpfs /shared", "umount /shared")),
    Fault("the storage has no inodes", expect("RT501 n2"), on_host(
        "mount -t tmpfs -o size=9g,nr_inodes=500 tmpfs /shared", "umount /shared")),
    Fault("the storage is not the others'", expect("RT504 n1", "RT504 n2", "RT504 n3"), on_host(
        "mount -t tmpfs -o size=9g tmpfs /shared && install -d -o ray -m 755 /shared/results",
        "umount /shared"), "prove", ("--only", "RT5xx")),
    # RT6xx
    Fault("a host has no power", expect("RT601 n3"), powered_off, options=("--timeout", "30")),
    Fault("nobody may log in", expect("RT601 n2"), on_host(
        "systemctl stop ssh.socket ssh.service", "systemctl start ssh"), options=("--timeout", "30")),
    Fault("a host has no Python", expect("RT601 n2"), on_host(
        "mv /usr/bin/python3 /usr/bin/python3.away", "mv /usr/bin/python3.away /usr/bin/python3")),
    Fault("a host's Python says garbage", expect("RT601 n2"), on_host(
        "mv /usr/bin/python3 /usr/bin/python3.away; printf '#!/bin/sh\\necho garbage\\n' >/usr/bin/python3; "
        "chmod 755 /usr/bin/python3", "mv -f /usr/bin/python3.away /usr/bin/python3")),
    Fault("a host is too slow", expect("RT601 n2"), on_host(
        "mv /usr/bin/python3 /usr/bin/python3.away; printf '#!/bin/sh\\nsleep 30\\n' >/usr/bin/python3; "
        "chmod 755 /usr/bin/python3", "mv -f /usr/bin/python3.away /usr/bin/python3"),
        options=("--timeout", "20")),
    Fault("a host's name leads to loopback", expect("RT602 n2"), on_host(
        "cp /etc/hosts /root/hosts; echo '127.0.1.1 '$(hostname) >/etc/hosts",
        "cat /root/hosts >/etc/hosts")),
    Fault("another size of packets", expect("RT605 n2"), on_host(
        "ip link set eth0 mtu 1300", "ip link set eth0 mtu 1500")),
    Fault("two workers do not reach each other", expect("RT604 n2", "RT604 n3", "RT606 n2"), on_host(
        "ip route add prohibit @n3@/32", "ip route delete prohibit @n3@/32"), "prove",
        ("--only", "RT604,RT606")),
    Fault("a name leads to somebody else", expect("RT607 n2"), on_host(
        "cp /etc/hosts /root/hosts; (grep -v n3 /root/hosts; echo '192.0.2.77 n3') >/etc/hosts",
        "cat /root/hosts >/etc/hosts"),
        "prove", ("--only", "RT60x,RT607")),
    # RT7xx
    Fault("Ray was stopped on a worker", expect("RT701 n2"), on_host(
        "systemctl stop @unit@", "systemctl start @unit@", healthy=False), "cluster"),
    Fault("a node that nobody declares has joined", expect("RT701"), without_host("n3"), "cluster"),
    Fault("a flag has not reached Ray", expect("RT702 n2"), on_host(
        *drop_in("Environment=RAY_task_oom_retries=7"), healthy=True), "cluster"),
    Fault("another user's Ray", expect("RT704 n2"), on_host(
        f"cd /tmp && {_AS_ALICE} env RAY_AUTH_MODE=disabled PATH=$PATH {_OTHER_RAY} >/dev/null 2>&1",
        "kill -9 $(ps -o pid= -u alice); rm -rf /tmp/ray-of-alice; true", ready=_ALICE_IS_IDLE)),
    Fault("the unit does not start at boot", expect("RT705 n2"), on_host(
        "systemctl disable -q @unit@", "systemctl enable -q @unit@")),
    Fault("somebody has taken Ray's default place", expect("RT706 n2"), on_host(
        "install -d -o alice -m 755 /tmp/ray", "rmdir /tmp/ray")),
    # RT8xx
    Fault("a process of a dead Ray of this cluster", expect("RT801 n2"), on_host(*background(
        "env RAYTOOLS_RAY_SESSION=dead RAYTOOLS_ROOT=@root@ sleep 600", "leftover"))),
    Fault("a worker of a Ray that was killed", expect("RT801 n2"), on_host(*background(
        "bash -c 'exec -a ray::IDLE sleep 600'", "worker"))),
    Fault("few open files and processes", expect("RT802 n2", "RT807 n2"), on_host(
        *drop_in("LimitNOFILE=5000", "TasksMax=2000"), healthy=True), "cluster"),
    Fault("a run whose supervisor was killed", expect("RT803 n2"), on_host(
        "cd /root && setsid @run@ --record /root/run.json -- sleep 600 "
        ">/dev/null 2>&1 </dev/null & echo $! >/run/requester.pid; for _ in $(seq 100); do "
        "pgrep -xf 'sleep 600' >/dev/null && break; sleep 0.1; done; sleep 0.5; "
        "kill -9 $(pgrep -P $(cat /run/requester.pid)) $(cat /run/requester.pid)",
        "cd /root && @run@ --record /root/run.json -- true; rm -f /root/run*.json")),
    Fault("a parent that does not collect its children", expect("RT804 n2"), on_host(*background(
        _ZOMBIES, "zombies"), ready="[ $(grep -l '^State:.Z' /proc/[0-9]*/status | wc -l) -gt 140 ]")),
    Fault("a process that cannot be interrupted", expect("RT804 n2"), on_host(
        background(_VFORK, "stuck")[0],
        "pkill -9 -s $(cat /run/stuck.pid); rm -f /run/stuck.pid; true",
        ready="grep -q '^State:.D' /proc/$(cat /run/stuck.pid)/status")),
    Fault("somebody computes", expect("RT805 n2"), on_host(
        background("sh -c '(while :; do :; done) & while :; do :; done'", "busy")[0],
        "pkill -9 -s $(cat /run/busy.pid); rm -f /run/busy.pid; true")),
    Fault("somebody holds memory", expect("RT805 n2"), on_host(
        *background(_HOGS.replace("@bytes@", "5 * 2**29"), "hog"),
        ready="[ $(awk '/RssAnon/ {print $2}' /proc/$(cat /run/hog.pid)/status) -gt 2500000 ]")),
    Fault("sessions of crashed Rays", expect("RT806 n2"), on_host(
        "cd @root@/ray/ && for n in $(seq 12); do mkdir -p session_2020-01-01_00-00-00_$n/logs; done",
        "rm -rf @root@/ray/session_2020-01-01_*")),
    # RT9xx
    Fault("others may read the token", expect("RT901 n2"), on_host(
        "chmod 644 @root@/token", "chmod 600 @root@/token")),
    Fault("another token", expect("RT905 n2"), on_host(
        "cp -a @root@/token /root/token; printf 0123456789abcdef0123456789abcdef >@root@/token",
        "cat /root/token >@root@/token; rm /root/token")),
    Fault("others may write to the toolkit", expect("RT902 n2"), on_host(
        "chmod o+w $(ls -d @root@/toolkit/*)", "chmod o-w $(ls -d @root@/toolkit/*)")),
    Fault("the plan belongs to somebody else", expect("RT902 n2"), on_host(
        "stat -c %U:%G @root@/node.json >/root/owner; chown alice @root@/node.json",
        "chown $(cat /root/owner) @root@/node.json")),
    Fault("host keys are not checked", expect("RT904 n2"), in_inventory(
        ansible_ssh_extra_args="-o StrictHostKeyChecking=no")),
    Fault("Ray is open at an address that is not the cluster's", expect("RT906 n2"), second_address, "prove",
        ("--only", "RT906")),
    # last: the raylet's program cannot be put back under a running raylet
    Fault("Ray's program was replaced", expect("RT403 n2"), on_host(
        f"cd {_SITE}/ray/core/src/ray/raylet && cp -p raylet raylet.new && mv raylet.new raylet",
        "systemctl restart @unit@", healthy=True), "cluster"),
)  # fmt: skip
