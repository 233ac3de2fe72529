"""What the kernel's files mean, recorded from several kinds of machines; what is missing stays unknown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raytools.node import facts, facts_cgroup, facts_cpu, inspect_gpus
from raytools.node.__main__ import COMMANDS
from raytools.node.cgroup_tree import OwnCgroups, locate

# a hybrid machine: v1 controllers, a v2 tree beside them
HYBRID_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_OWN = """\
9:name=systemd:/
4:memory:/jobs/294d76f9
3:cpuset:/
1:cpu:/
0::/
"""

# Debian 12 with systemd and cgroup v2, a service below a slice with limits
V2_MOUNTS = (
    "29 23 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
)
V2_OWN = "0::/raytools.slice/raytools-demo.service/main\n"

# Docker on v1 without a cgroup namespace: the path is the outside's
V1_CONTAINER_MOUNTS = """\
751 750 0:30 /docker/4f1c /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cgroup rw,cpu,cpuacct
755 750 0:34 /docker/4f1c /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory
757 750 0:36 /docker/4f1c /sys/fs/cgroup/cpuset ro,nosuid - cgroup cgroup rw,cpuset
"""
V1_CONTAINER_OWN = """\
11:cpu,cpuacct:/docker/4f1c
8:memory:/docker/4f1c
5:cpuset:/docker/4f1c
"""


def located(mounts: str, own: str, files: dict[str, str] | None = None) -> OwnCgroups:
    return locate(mounts, own, (files or {}).get)


# --- own group -----------------------------------------------------------------------------------


def test_on_a_hybrid_machine_each_controller_has_its_own_directory() -> None:
    groups = located(HYBRID_MOUNTS, HYBRID_OWN)
    assert groups.mode == "hybrid"
    assert groups.own["memory"] == "/sys/fs/cgroup/memory/jobs/294d76f9"
    assert groups.own["cpuset"] == "/sys/fs/cgroup/cpuset"
    assert groups.version("memory") == 1
    assert "systemd" not in groups.own


def test_a_named_v1_hierarchy_beside_v2_is_not_a_hybrid() -> None:
    mounts = V2_MOUNTS + "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
    assert located(mounts, V2_OWN).mode == "v2"


def test_on_v2_the_controllers_come_from_the_own_group() -> None:
    own = "/sys/fs/cgroup/raytools.slice/raytools-demo.service/main"
    groups = located(V2_MOUNTS, V2_OWN, {f"{own}/cgroup.controllers": "cpuset cpu memory pids\n"})
    assert groups.mode == "v2"
    assert groups.own["memory"] == own
    assert groups.version("cpuset") == 2
    assert groups.version("freezer") is None


def test_in_a_container_the_path_is_relative_to_the_mounts_root() -> None:
    groups = located(V1_CONTAINER_MOUNTS, V1_CONTAINER_OWN)
    assert groups.own["memory"] == "/sys/fs/cgroup/memory"
    assert groups.own["cpu"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert groups.mode == "v1"


def test_a_group_below_the_containers_own_is_found() -> None:
    groups = located(V1_CONTAINER_MOUNTS, "8:memory:/docker/4f1c/run-1\n")
    assert groups.own["memory"] == "/sys/fs/cgroup/memory/run-1"


def test_a_path_outside_every_mount_means_the_top_that_can_be_seen() -> None:
    groups = located(V1_CONTAINER_MOUNTS, "8:memory:/libpod_parent/77\n")
    assert groups.own["memory"] == "/sys/fs/cgroup/memory"


def test_of_two_mounts_the_one_that_shows_more_ancestors_is_taken() -> None:
    mounts = (
        "60 1 0:32 /jobs/a /mnt/inner rw - cgroup cgroup rw,memory\n"
        "35 1 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )
    assert located(mounts, "4:memory:/jobs/a\n").own["memory"] == "/sys/fs/cgroup/memory/jobs/a"


def test_blanks_in_a_mount_point_are_unescaped() -> None:
    mounts = "35 1 0:32 / /sys/fs/my\\040cgroups rw - cgroup cgroup rw,memory\n"
    assert located(mounts, "4:memory:/\n").own["memory"] == "/sys/fs/my cgroups"


def test_without_cgroups_nothing_is_claimed() -> None:
    groups = located("1 0 0:1 / / rw - ext4 /dev/vda rw\n", "")
    assert (groups.mode, groups.own) == (None, {})
    assert facts_cgroup.memory_limit_bytes(groups, {}.get) is None
    assert facts_cgroup.quota_cpus(groups, {}.get) is None
    assert facts_cgroup.cpuset_text(groups, {}.get) is None
    assert facts_cgroup.pids_limit(groups, {}.get) is None


# --- limits of all ancestors ---------------------------------------------------------------------


def test_the_tightest_memory_limit_of_all_v2_ancestors_counts() -> None:
    top, own = "/sys/fs/cgroup", "/sys/fs/cgroup/raytools.slice/raytools-demo.service/main"
    files = {
        f"{own}/cgroup.controllers": "memory cpu",
        f"{own}/memory.max": "max\n",
        f"{top}/raytools.slice/raytools-demo.service/memory.max": "8589934592\n",
        f"{top}/raytools.slice/memory.max": "4294967296\n",
    }
    assert facts_cgroup.memory_limit_bytes(located(V2_MOUNTS, V2_OWN, files), files.get) == 4294967296


def test_v1s_huge_number_is_no_limit() -> None:
    files = {
        "/sys/fs/cgroup/memory/jobs/294d76f9/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": "9223372036854771712\n",
    }
    groups = located(HYBRID_MOUNTS, HYBRID_OWN, files)
    assert facts_cgroup.memory_limit_bytes(groups, files.get) is None
    files["/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes"] = "2147483648\n"
    assert facts_cgroup.memory_limit_bytes(groups, files.get) == 2147483648


def test_v1_states_a_limit_that_a_container_cannot_see() -> None:
    files = {
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/memory.stat": "cache 0\nhierarchical_memory_limit 1073741824\ntotal_rss 1\n",
    }
    groups = located(V1_CONTAINER_MOUNTS, V1_CONTAINER_OWN, files)
    assert facts_cgroup.memory_limit_bytes(groups, files.get) == 1073741824


def test_the_tightest_v2_quota_of_all_ancestors_counts() -> None:
    own = "/sys/fs/cgroup/raytools.slice/raytools-demo.service/main"
    files = {
        f"{own}/cgroup.controllers": "memory cpu",
        f"{own}/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/raytools.slice/cpu.max": "150000 100000\n",
        "/sys/fs/cgroup/raytools.slice/raytools-demo.service/cpu.max": "400000 100000\n",
    }
    assert facts_cgroup.quota_cpus(located(V2_MOUNTS, V2_OWN, files), files.get) == 1.5


def test_a_v1_quota_of_a_container_counts() -> None:
    files = {
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "50000\n",
    }
    assert facts_cgroup.quota_cpus(located(V1_CONTAINER_MOUNTS, V1_CONTAINER_OWN, files), files.get) == 4.0


@pytest.mark.parametrize("text", ["max 100000", "", "100000", "a b", "100000 0"])
def test_what_is_no_v2_quota_is_none(text: str) -> None:
    assert facts_cgroup.parse_v2_cpu_max(text) is None


@pytest.mark.parametrize(("quota", "period"), [("-1", "100000"), ("", ""), ("100000", "0")])
def test_what_is_no_v1_quota_is_none(quota: str, period: str) -> None:
    assert facts_cgroup.parse_v1_cfs(quota, period) is None


def test_the_tightest_limit_of_processes_of_all_ancestors_counts() -> None:
    unit = "/sys/fs/cgroup/raytools.slice/raytools-demo.service"
    files = {
        f"{unit}/main/cgroup.controllers": "memory pids",
        f"{unit}/main/pids.max": "max\n",
        f"{unit}/pids.max": "9000\n",
        "/sys/fs/cgroup/raytools.slice/pids.max": "4000\n",
    }
    assert facts_cgroup.pids_limit(located(V2_MOUNTS, V2_OWN, files), files.get) == 4000
    del files[f"{unit}/pids.max"], files["/sys/fs/cgroup/raytools.slice/pids.max"]
    assert facts_cgroup.pids_limit(located(V2_MOUNTS, V2_OWN, files), files.get) is None


def test_the_effective_cpuset_is_preferred() -> None:
    files = {
        "/sys/fs/cgroup/cpuset/cpuset.effective_cpus": "0-1\n",
        "/sys/fs/cgroup/cpuset/cpuset.cpus": "0-3\n",
    }
    groups = located(HYBRID_MOUNTS, HYBRID_OWN, files)
    assert facts_cgroup.cpuset_text(groups, files.get) == "0-1"
    del files["/sys/fs/cgroup/cpuset/cpuset.effective_cpus"]
    assert facts_cgroup.cpuset_text(groups, files.get) == "0-3"


# --- CPUs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("0-1,0-1", [0, 1]), ("", None), ("\n", None), ("a-b", None)],
)
def test_cpu_lists_are_read_as_the_kernel_writes_them(text: str, expected: list[int] | None) -> None:
    assert facts_cpu.parse_cpu_list(text) == expected


def test_allowed_is_what_affinity_cpuset_and_online_have_in_common() -> None:
    assert facts.allowed_cpus([0, 1, 2, 3], [1, 2, 3], [0, 1, 2]) == [1, 2]
    assert facts.allowed_cpus([0, 1], None, None) == [0, 1]


@pytest.mark.parametrize(
    ("allowed", "quota", "usable"),
    [([0, 1, 2, 3], None, 4), ([0, 1, 2, 3], 2.5, 2), ([0, 1], 8.0, 2), ([0, 1], 0.5, 1)],
)
def test_usable_is_whole_cpus_and_at_least_one(allowed: list[int], quota: float | None, usable: int) -> None:
    assert facts.usable_cpus(allowed, quota) == usable


def test_siblings_share_a_core_and_cores_are_unique_over_sockets() -> None:
    cpu = "/sys/devices/system/cpu"
    files = {}
    for number in range(8):  # two sockets, two cores each, two threads: siblings are n and n + 4
        files[f"{cpu}/cpu{number}/topology/core_cpus_list"] = f"{number % 4},{number % 4 + 4}\n"
        files[f"{cpu}/cpu{number}/topology/physical_package_id"] = f"{number % 4 // 2}\n"
    found = facts_cpu.threads(list(range(8)), {}, files.get, lambda _: {0: "0-1,4-5", 1: "2-3,6-7"})
    assert [one["core"] for one in found] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [one["socket"] for one in found] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [one["numa"] for one in found] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_without_sys_the_cores_come_from_cpuinfo() -> None:
    text = "".join(
        f"processor\t: {n}\nmodel name\t: Some CPU\nphysical id\t: {n // 2}\ncore id\t: 0\n\n"
        for n in range(4)
    )
    model, ids = facts_cpu.parse_cpuinfo(text)
    found = facts_cpu.threads([0, 1, 2, 3], ids, {}.get, lambda _: {})
    assert model == "Some CPU"
    assert [(one["core"], one["socket"], one["numa"]) for one in found] == [
        (0, 0, None), (0, 0, None), (2, 1, None), (2, 1, None),
    ]  # fmt: skip


def test_a_machine_that_tells_nothing_of_its_cores_has_unknown_ones() -> None:
    model, ids = facts_cpu.parse_cpuinfo("processor\t: 0\nBogoMIPS\t: 50.00\n\nprocessor\t: 1\n")
    assert model is None
    found = facts_cpu.threads([0, 1], ids, {}.get, lambda _: {})
    assert found == [{"cpu": n, "core": None, "socket": None, "numa": None} for n in (0, 1)]


def test_a_firmware_that_does_not_say_the_socket_leaves_it_unknown() -> None:
    files = {"/sys/devices/system/cpu/cpu0/topology/physical_package_id": "-1\n"}
    assert facts_cpu.threads([0], {}, files.get, lambda _: {})[0]["socket"] is None


def test_who_decides_on_the_clock_is_read_for_all_cpus() -> None:
    cpu = "/sys/devices/system/cpu"
    files = {
        f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave\n",
        f"{cpu}/cpu1/cpufreq/scaling_governor": "performance\n",
        f"{cpu}/intel_pstate/no_turbo": "0\n",
    }
    assert facts_cpu.frequency([0, 1], files.get) == {
        "governors": ["performance", "powersave"], "boost": True,
    }  # fmt: skip
    assert facts_cpu.frequency([0], {f"{cpu}/intel_pstate/no_turbo": "1\n"}.get)["boost"] is False
    assert facts_cpu.frequency([0], {f"{cpu}/cpufreq/boost": "1\n"}.get)["boost"] is True  # acpi, AMD


def test_a_virtual_machine_tells_nothing_of_its_clock() -> None:
    assert facts_cpu.frequency([0, 1], {}.get) == {"governors": [], "boost": None}


# --- memory, GPUs, libraries, network ------------------------------------------------------------


def test_usable_memory_is_the_smaller_of_total_and_limit() -> None:
    meminfo = "MemTotal:       24684092 kB\nMemAvailable:   20000000 kB\nSwapTotal:             0 kB\n"
    assert facts.memory_facts(meminfo, None)["usable_bytes"] == 24684092 * 1024
    limited = facts.memory_facts(meminfo, 2**30)
    assert (limited["usable_bytes"], limited["limit_bytes"]) == (2**30, 2**30)
    assert limited["swap_total_bytes"] == 0


def test_memory_that_cannot_be_measured_is_unknown_and_not_zero() -> None:
    found = facts.memory_facts("", None)
    names = ("total_bytes", "usable_bytes", "available_bytes", "swap_total_bytes", "limit_bytes")
    assert [found[name] for name in names] == [None] * 5


def test_gpus_are_read_from_nvidia_smi() -> None:
    text = "0, GPU-1f2e, NVIDIA A100-SXM4-80GB, 81920\n1, GPU-9a, Tesla, odd name, [N/A]\n"
    first, second = facts.parse_nvidia_smi(text)
    assert first == {
        "index": 0,
        "uuid": "GPU-1f2e",
        "name": "NVIDIA A100-SXM4-80GB",
        "memory_bytes": 81920 * 2**20,
    }
    assert (second["name"], second["memory_bytes"]) == ("Tesla, odd name", None)
    assert facts.parse_nvidia_smi("No devices were found\n") == []


def test_the_loaders_cache_is_asked_for_this_machines_word_size() -> None:
    text = (
        "\tlibgomp.so.1 (libc6) => /lib/i386-linux-gnu/libgomp.so.1\n"
        "\tlibgomp.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libgomp.so.1\n"
    )
    assert facts.parse_ldconfig(text, "libgomp.so.1", "x86_64") == "/lib/x86_64-linux-gnu/libgomp.so.1"
    assert facts.parse_ldconfig(text, "libomp.so.5", "x86_64") is None


def test_own_addresses_are_the_local_leaves_of_the_routing_table() -> None:
    text = """\
Local:
  +-- 0.0.0.0/0 3 0 5
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
        |-- 192.0.2.2
           /32 host LOCAL
"""
    assert facts.parse_fib_trie(text) == ["127.0.0.1", "192.0.2.2"]


def test_link_local_addresses_are_left_out() -> None:
    text = (
        "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n"
        "fd000000000000000000000000000002 04 40 00 82     eth0\n"
    )
    assert facts.parse_if_inet6(text) == ["fd00::2"]


def test_the_systems_name_is_read() -> None:
    assert facts.parse_os_release('ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n') == (
        "Debian GNU/Linux 12 (bookworm)"
    )
    assert facts.parse_os_release("") is None


# --- on a bare Python ----------------------------------------------------------------------------


def test_facts_need_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from raytools.node.__main__ import main\n"
        "code = main(['facts'])\n"
        "assert not {'psutil', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    root = str(facts.Path(facts.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", code, root], capture_output=True, text=True, check=True, timeout=30
    )
    assert json.loads(done.stdout)["schema"] == "raytools.facts/1"


def test_an_unknown_node_command_says_which_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raytools.node", "fact"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert f"found fact, expected one of {', '.join(COMMANDS)}" in done.stderr


def test_who_computes_on_gpus_is_read_from_nvidia_smi() -> None:
    text = "GPU-5a6b7c8d, 4711, 1536\nGPU-5a6b7c8d, 4712, [N/A]\n"
    first, second = inspect_gpus.parse_compute_apps(text)
    assert first == {"uuid": "GPU-5a6b7c8d", "pid": 4711, "used_bytes": 1536 * 2**20}
    assert second["used_bytes"] is None
    assert inspect_gpus.parse_compute_apps("No running processes found\n") == []


def test_holders_of_gpus_are_told_with_driver_and_whether_they_are_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        "case $1 in *driver_version) printf '550.54.15\\n550.54.15\\n' ;;\n"
        f"*) echo 'GPU-5a6b7c8d, {os.getpid()}, 512' ;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = inspect_gpus.gpu_facts(str(tmp_path))
    assert found["driver"] == "550.54.15"
    (holder,) = found["holders"]
    assert (holder["pid"], holder["in_run"], holder["ours"]) == (os.getpid(), False, False)
    assert "python" in holder["command"]
