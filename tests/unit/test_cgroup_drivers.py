"""The drivers on an invented kernel: each step can fail and is undone, each refusal says what to do."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raytools.errors import RefusedError
from raytools.node import cgroup, cgroup_v1, cgroup_v2, systemd_scope
from raytools.node.cgroup import CONTROLLERS, INSIDE, GroupLimits
from raytools.node.cgroup_tree import UNIFIED, OwnCgroups

LIMITS = GroupLimits(cpus=(0, 1), memory_bytes=1 << 30, pids=4096)

FILES_V1 = {
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
        "memory.use_hierarchy": "1",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
        "memory.stat": "total_rss 4096\n",
        "memory.max_usage_in_bytes": "8192",
        "memory.failcnt": "0",
    },
    "cpuset": {
        "cpuset.cpus": "",
        "cpuset.mems": "",
        "cpuset.effective_cpus": "",
        "cpuset.effective_mems": "",
    },
    "pids": {"pids.max": "max"},
    "freezer": {"freezer.state": "THAWED"},
    "cpuacct": {"cpuacct.usage": "2500000000"},
    "cpu": {"cpu.shares": "1024"},
}
FILES_V2 = {
    "cgroup.controllers": "cpuset cpu io memory pids",
    "cgroup.subtree_control": "cpuset cpu memory pids",
    "cgroup.kill": "",
    "cpuset.cpus": "",
    "cpuset.cpus.effective": "0-1",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.oom.group": "0",
    "memory.stat": "anon 4096\nfile 100\n",
    "memory.events": "oom 1\noom_kill 3\noom_group_kill 1\n",
    "memory.events.local": "oom 1\n",
    "memory.peak": "8192",
    "cpu.stat": "usage_usec 2500000\nthrottled_usec 500000\n",
    "pids.max": "max",
}


class Kernel:
    """A cgroup file system below a directory: new groups have files, and only empty groups can be removed.

    Its `steps` are what changes something; the one with the number `fails_at` fails.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.steps: list[str] = []
        self.fails_at: int | None = None
        self.error = OSError(5, "Input/output error")
        self._mkdir, self._rmdir = os.mkdir, os.rmdir
        monkeypatch.setattr(os, "mkdir", self._make)
        monkeypatch.setattr(os, "rmdir", self._remove)
        monkeypatch.setattr(os, "chown", lambda path, *_: self._step(f"chown {path}"))
        monkeypatch.setattr(cgroup, "write_file", self._write)

    def group(self, path: str) -> str:
        """A group that is there from the start."""
        directory = self.root
        for part in Path(path).parts:
            directory /= part
            if not directory.exists():
                self._mkdir(directory)
                self._fill(directory)
        return str(directory)

    def groups(self) -> set[str]:
        return {folder for folder, _names, _files in os.walk(self.root)}

    def _is_ours(self, path: str | os.PathLike[str]) -> bool:
        return str(path).startswith(f"{self.root}/")

    def _fill(self, directory: Path) -> None:
        hierarchy = directory.relative_to(self.root).parts[0]
        files = FILES_V2 if hierarchy == UNIFIED else FILES_V1.get(hierarchy, {})
        for name, text in {"cgroup.procs": "", **files}.items():
            descriptor = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, text.encode())
            os.close(descriptor)

    def _step(self, name: str) -> None:
        self.steps.append(name.replace(f"{self.root}/", ""))
        if len(self.steps) - 1 == self.fails_at:
            raise type(self.error)(self.error.errno, self.error.strerror)

    def _make(self, path: str, *arguments: int) -> None:
        if not self._is_ours(path):
            return self._mkdir(path, *arguments)
        if not os.path.exists(path):
            self._step(f"mkdir {path}")
        self._mkdir(path, *arguments)
        return self._fill(Path(path))

    def _remove(self, path: str, **options: int) -> None:
        if self._is_ours(path):
            entries = list(os.scandir(path))
            members = [entry for entry in entries if entry.name == "cgroup.procs" and entry.stat().st_size]
            if members or any(entry.is_dir() for entry in entries):
                raise OSError(16, "Device or resource busy", path)
            for entry in entries:
                os.unlink(entry)
        self._rmdir(path, **options)

    def _write(self, path: str, value: str) -> None:
        if not os.path.exists(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        self._step(f"write {path}")
        Path(path).write_text(value)
        if path.endswith("cpuset.cpus") and os.path.exists(f"{path}.effective"):
            Path(f"{path}.effective").write_text(value)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    root = tmp_path / "cgroup"
    root.mkdir()
    with monkeypatch.context() as patch:
        yield Kernel(root, patch)


def driver_v1(kernel: Kernel, controllers: tuple[str, ...] = CONTROLLERS) -> cgroup_v1.DriverV1:
    tops = {name: kernel.group(f"{name}/own") for name in controllers}
    for file, value in (("cpus", "0-3"), ("mems", "0")):
        (Path(tops["cpuset"]) / f"cpuset.{file}").write_text(value)
    return cgroup_v1.DriverV1({name: f"{top}/raytools" for name, top in tops.items()}, tops)


def driver_v2(kernel: Kernel) -> cgroup_v2.DriverV2:
    return cgroup_v2.DriverV2(kernel.group(f"{UNIFIED}/own"), f"{kernel.root}/{UNIFIED}")


DRIVERS = {"v1": driver_v1, "v2": driver_v2}
Maker = Callable[[Kernel], cgroup.Driver]


@pytest.fixture(params=DRIVERS.values(), ids=DRIVERS)
def make_driver(request: pytest.FixtureRequest) -> Maker:
    made: Maker = request.param
    return made


def text_of(*parts: str) -> str:
    return Path("/".join(parts)).read_text()


# ----------------------------------------------------------------------------------- creating, and undoing


def test_a_group_of_v1_has_all_its_limits_on_the_outer_level(kernel: Kernel) -> None:
    group = driver_v1(kernel).create("rt-run-1", LIMITS)
    own = f"{kernel.root}/%s/own/raytools/rt-run-1"
    assert text_of(own % "memory", "memory.limit_in_bytes") == str(1 << 30)
    assert text_of(own % "memory", "memory.memsw.limit_in_bytes") == str(1 << 30)
    assert text_of(own % "pids", "pids.max") == "4096"
    assert text_of(own % "cpuset", "cpuset.cpus") == "0,1"
    assert text_of(own % "cpuset", "cpuset.mems") == "0"
    assert text_of(own % "cpuset", INSIDE, "cpuset.cpus") == "0,1"  # an empty cpuset takes no processes
    assert text_of(own % "cpuset", "..", "cpuset.cpus") == "0-3"
    assert all(f"/rt-run-1/{INSIDE}/" in entrance for entrance in group.entrances())


def test_a_group_of_v1_turns_the_kernels_killer_on_where_it_inherits_that_it_is_off(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES_V1["memory"], "memory.oom_control", "oom_kill_disable 1\nunder_oom 0\n")
    driver_v1(kernel).create("rt-run-1", LIMITS)
    assert text_of(str(kernel.root), "memory/own/raytools/rt-run-1/memory.oom_control") == "0"


def test_a_group_of_v1_without_swap_accounting_does_not_swap(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(FILES_V1["memory"], "memory.memsw.limit_in_bytes")
    monkeypatch.setitem(FILES_V1["memory"], "memory.swappiness", "60")
    driver_v1(kernel).create("rt-run-1", LIMITS)
    assert text_of(str(kernel.root), "memory/own/raytools/rt-run-1/memory.swappiness") == "0"


def test_a_group_of_v2_has_all_its_limits_on_the_outer_level(kernel: Kernel) -> None:
    group = driver_v2(kernel).create("rt-run-1", LIMITS)
    own = f"{kernel.root}/{UNIFIED}/own/rt-run-1"
    written = {name: text_of(own, name) for name in ("cpuset.cpus", "memory.max", "pids.max")}
    assert written == {"cpuset.cpus": "0,1", "memory.max": str(1 << 30), "pids.max": "4096"}
    assert text_of(own, "memory.swap.max") == "0"
    assert text_of(own, "memory.oom.group") == "1"
    assert text_of(own, INSIDE, "memory.max") == "max"
    assert all(entrance.startswith(f"{own}/{INSIDE}/") for entrance in group.entrances())


def test_removing_the_last_group_removes_all_that_was_made(kernel: Kernel, make_driver: Maker) -> None:
    driver = make_driver(kernel)
    before = kernel.groups()
    first, second = driver.create("rt-run-1", LIMITS), driver.create("rt-run-2", LIMITS)
    assert {path for path in driver.paths("rt-run-1") if os.path.isdir(path)} == set(driver.paths("rt-run-1"))
    first.remove()
    assert all(os.path.isdir(path) for path in driver.paths("rt-run-2"))
    second.remove()
    assert kernel.groups() == before


@pytest.mark.parametrize("version", DRIVERS)
def test_whatever_step_fails_nothing_is_left_and_the_refusal_names_it(
    kernel: Kernel, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    # one controller with limits before the cpuset, one after it: the others are made in the same way
    driver = driver_v2(kernel) if version == "v2" else driver_v1(kernel, ("memory", "cpuset", "pids"))
    before = kernel.groups()
    driver.create("rt-run-1", LIMITS).remove()
    steps, count = list(kernel.steps), len(kernel.steps)
    assert count > 5
    wrong = []
    for failing in range(count):
        kernel.steps.clear()
        kernel.fails_at = failing
        try:
            driver.create("rt-run-1", LIMITS)
            wrong.append((steps[failing], "it was not noticed"))
        except RefusedError as error:
            if kernel.steps[failing].split()[1].removesuffix("/inside") not in str(error) or not error.fix:
                wrong.append((steps[failing], str(error)))
        except OSError as error:
            wrong.append((steps[failing], f"not a refusal: {error!r}"))
        if left := kernel.groups() - before:
            wrong.append((steps[failing], f"left: {sorted(left)}"))
        for path in sorted(kernel.groups() - before):
            shutil.rmtree(path, ignore_errors=True)
        assert kernel.groups() == before
    assert wrong == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(30, "Read-only file system"), "mounted read-only here, as inside another limited run"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "cgroup.max.descendants"),
        (OSError(28, "No space left on device"), "no room for another group"),
    ],
)
def test_a_group_that_cannot_be_made_says_why_in_words(
    kernel: Kernel, error: OSError, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driver_v2(kernel)
    kernel.fails_at, kernel.error = 0, error
    with pytest.raises(RefusedError, match=words) as refused:
        driver.create("rt-run-1", LIMITS)
    assert "raytools grant --user" in (refused.value.fix or "")


def test_a_limit_that_the_kernel_does_not_take_is_named_with_value_and_reason(kernel: Kernel) -> None:
    driver = driver_v2(kernel)
    kernel.fails_at, kernel.error = 1, OSError(22, "Invalid argument")
    with pytest.raises(RefusedError) as refused:
        driver.create("rt-run-1", LIMITS)
    file = f"{kernel.root}/{UNIFIED}/own/rt-run-1/cpuset.cpus"
    assert str(refused.value) == (
        f"cannot write '0,1' to {file}: Invalid argument, expected CPUs "
        "that are online and allowed to the group above. See which limits work here: raytools run --check"
    )


def test_our_folder_that_another_run_removes_meanwhile_is_made_again(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driver_v1(kernel)
    make, times = cgroup.make_directory, []

    def removed_meanwhile(directory: str, fix: str | None = None) -> None:
        if not times and "raytools/rt-run-1" in directory:
            times.append(1)
            os.rmdir(os.path.dirname(directory))
        make(directory, fix)

    monkeypatch.setattr(cgroup, "make_directory", removed_meanwhile)
    group = driver.create("rt-run-1", LIMITS)
    assert times
    group.remove()


def test_v2_refuses_cpus_that_the_groups_above_do_not_allow(kernel: Kernel) -> None:
    driver = driver_v2(kernel)
    write = kernel._write

    def shrinks(path: str, value: str) -> None:
        write(path, value)
        if path.endswith("cpuset.cpus"):
            Path(f"{path}.effective").write_text("1")

    before = kernel.groups()
    cgroup.write_file = shrinks  # type: ignore[assignment]  # undone by the kernel's own patch
    with pytest.raises(RefusedError, match=r"of the CPUs \[0, 1\], the groups above .* allow \[1\]"):
        driver.create("rt-run-1", LIMITS)
    assert kernel.groups() == before


# -------------------------------------------------------------------------------------------- measuring


def test_what_a_group_used_is_read_in_seconds_and_bytes(kernel: Kernel, make_driver: Maker) -> None:
    group = make_driver(kernel).create("rt-run-1", LIMITS)
    usage = group.usage()
    assert usage.cpu_s == pytest.approx(2.5)
    assert usage.memory_peak_bytes == 8192
    assert usage.anon_bytes == 4096
    assert usage.throttled_s == (0.5 if group.kind == "cgroup-v2" else 0.0)


def test_what_a_kernel_does_not_tell_is_none_and_not_zero(kernel: Kernel, make_driver: Maker) -> None:
    driver = make_driver(kernel)
    group = driver.create("rt-run-1", LIMITS)
    for path in driver.paths("rt-run-1"):
        for name in ("memory.peak", "memory.max_usage_in_bytes", "memory.stat", "cpu.stat", "cpuacct.usage"):
            (Path(path) / name).unlink(missing_ok=True)
        for folder in (path, f"{path}/{INSIDE}"):
            for name in ("memory.events", "memory.oom_control"):
                (Path(folder) / name).unlink(missing_ok=True)
    usage = group.usage()
    found = (usage.cpu_s, usage.memory_peak_bytes, usage.anon_bytes, usage.oom_kills, usage.swap_in_bytes)
    assert found == (None,) * 5


def test_kills_are_counted_where_each_version_counts_them(kernel: Kernel) -> None:
    v1 = driver_v1(kernel).create("rt-run-1", LIMITS)
    inside = f"{kernel.root}/memory/own/raytools/rt-run-1/{INSIDE}/memory.oom_control"
    Path(inside).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert v1.oom_kills() == 2
    assert driver_v2(kernel).create("rt-run-1", LIMITS).oom_kills() == 1  # the whole group, once


def test_limits_that_somebody_changed_meanwhile_are_told(kernel: Kernel, make_driver: Maker) -> None:
    driver = make_driver(kernel)
    group = driver.create("rt-run-1", LIMITS)
    assert group.changed_limits(LIMITS) == []
    for path in driver.paths("rt-run-1"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (Path(path) / name).exists():
                (Path(path) / name).write_text(str(2 << 30))
        for name in ("cpuset.cpus", "cpuset.cpus.effective"):
            if (Path(path) / name).exists():
                (Path(path) / name).write_text("0-3")
    memory, cpus = group.changed_limits(LIMITS)
    assert memory.startswith("memory: ")
    assert str(2 << 30) in memory
    assert cpus.startswith("cpu: ")
    assert cpus.endswith("[0, 1, 2, 3]")


# ------------------------------------------------------------------------------- where no group can be made


class Host:
    """Where a process is, with what it may write to; the user is one without a name."""

    def __init__(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = kernel
        self.writable: set[str] = set()
        self.read_only: set[str] = set()
        statvfs = os.statvfs
        monkeypatch.setattr(os, "getuid", lambda: 4711)
        monkeypatch.setattr(cgroup, "user_name", lambda: "alice")
        monkeypatch.setattr(os, "access", lambda path, _mode: str(path) in self.writable)
        monkeypatch.setattr(systemd_scope, "is_available", lambda: False)
        monkeypatch.setattr(
            os, "statvfs", lambda path: _Flags(os.ST_RDONLY if str(path) in self.read_only else 0) or statvfs
        )

    def v1(self, controllers: tuple[str, ...] = CONTROLLERS) -> OwnCgroups:
        tops = {name: f"{self.kernel.root}/{name}" for name in controllers}
        own = {name: self.kernel.group(f"{name}/session") for name in controllers}
        return OwnCgroups("v1", own, tops, ())

    def v2(self, name: str = "session", controllers: str = "cpuset cpu memory pids") -> OwnCgroups:
        own = self.kernel.group(f"{UNIFIED}/{name}")
        for folder in (Path(own), Path(own).parent):
            (folder / "cgroup.controllers").write_text(controllers)
        names = tuple(controllers.split())
        top = f"{self.kernel.root}/{UNIFIED}"
        return OwnCgroups(
            "v2", dict.fromkeys((UNIFIED, *names), own), dict.fromkeys((UNIFIED, *names), top), names
        )


class _Flags:
    def __init__(self, flags: int) -> None:
        self.f_flag = flags


@pytest.fixture
def host(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(kernel, monkeypatch)


def refusal(groups: OwnCgroups) -> str:
    with pytest.raises(RefusedError) as refused:
        cgroup.select_driver(groups)
    assert refused.value.expected
    assert refused.value.fix
    return str(refused.value)


GRANT = "sudo raytools grant --user alice"


def test_v1_that_is_not_granted_says_so_and_gives_the_command(host: Host) -> None:
    groups = host.v1()
    assert refusal(groups) == (
        f"cgroup v1 controller memory: no permission to make a group below {groups.own['memory']}, "
        f"expected a group of the own user's (v1 delegates nothing by itself). Allow it once with: {GRANT}"
    )


def test_v1_that_is_mounted_read_only_says_so(host: Host) -> None:
    groups = host.v1()
    host.read_only.update(groups.own.values())
    message = refusal(groups)
    assert f"controller memory: {groups.own['memory']} is mounted read-only here" in message
    assert "another limited run" in message
    assert message.endswith("Start the run from outside of it")


def test_v1_that_is_granted_in_part_names_the_part_that_is_not(host: Host) -> None:
    groups = host.v1()
    folders = {name: host.kernel.group(f"{name}/raytools-user-4711") for name in CONTROLLERS}
    host.writable.update(path for name, path in folders.items() if name != "pids")
    message = refusal(groups)
    assert f"controller pids: {folders['pids']} is not writable for alice" in message
    assert message.endswith(GRANT)


def test_v1_of_which_one_subtree_is_missing_names_that_one(host: Host) -> None:
    groups = host.v1()
    host.writable.update(
        host.kernel.group(f"{name}/raytools-user-4711") for name in CONTROLLERS if name != "pids"
    )
    message = refusal(groups)
    assert "controller pids: " in message
    assert message.endswith(GRANT)


def test_v1_that_is_granted_makes_groups_there(host: Host) -> None:
    groups = host.v1()
    folders = [host.kernel.group(f"{name}/raytools-user-4711") for name in CONTROLLERS]
    host.writable.update(folders)
    paths = cgroup.select_driver(groups).paths("rt-run-1")
    assert sorted(paths) == sorted(f"{folder}/rt-run-1" for folder in folders)
    assert "/freezer/" in paths[0]  # a sweep that freezes first cannot be outrun


def test_v1_below_an_own_group_is_preferred_to_a_grant(host: Host) -> None:
    groups = host.v1()
    host.writable.update(groups.own.values())
    host.writable.update(host.kernel.group(f"{name}/raytools-user-4711") for name in CONTROLLERS)
    paths = cgroup.select_driver(groups).paths("rt-run-1")
    assert sorted(paths) == sorted(f"{own}/raytools/rt-run-1" for own in groups.own.values())


def test_v1_without_a_freezer_or_a_pids_controller_works_and_says_what_is_missing(host: Host) -> None:
    groups = host.v1(("memory", "cpuset"))
    host.writable.update(groups.own.values())
    (Path(groups.own["cpuset"]) / "cpuset.cpus").write_text("0-3")
    group = cgroup.select_driver(groups).create("rt-run-1", LIMITS)
    assert group.missing == ["pids: this machine has no pids controller"]
    assert group.kill_method == "signals"
    assert group.usage().cpu_s is None


def test_v2_that_is_mounted_read_only_says_so(host: Host) -> None:
    groups = host.v2()
    host.read_only.add(groups.own[UNIFIED])
    message = refusal(groups)
    assert f"cgroup v2: {groups.own[UNIFIED]} is mounted read-only here" in message
    assert message.endswith("Start the run from outside of it")


def test_v2_that_is_not_delegated_says_so_and_gives_the_command(host: Host) -> None:
    groups = host.v2()
    message = refusal(groups)
    assert f"cgroup v2: {groups.own[UNIFIED]} is not delegated to alice" in message
    assert message.endswith(GRANT)


def test_v2_that_is_delegated_but_holds_processes_itself_says_so(host: Host) -> None:
    groups = host.v2()
    host.writable.add(groups.own[UNIFIED])
    message = refusal(groups)
    assert "its processes sit directly in it" in message
    assert "leaf 'main'" in message
    assert "enter-main" in message


def test_v2_that_lacks_controllers_names_them(host: Host) -> None:
    groups = host.v2("session/main", "cpu memory")
    parent = os.path.dirname(groups.own[UNIFIED])
    host.writable.add(parent)
    lacking = OwnCgroups("v2", groups.own, groups.tops, ("cpu", "memory", "cpuset", "pids"))
    message = refusal(lacking)
    assert f"the controllers cpuset pids do not reach {parent}" in message
    assert f"cpuset cpu memory pids in {parent}/cgroup.controllers" in message
    assert message.endswith("Put into the unit: Delegate=cpuset cpu memory pids")


def test_v2_beside_the_leaf_main_is_where_groups_are_made(host: Host) -> None:
    groups = host.v2("session/main")
    parent = os.path.dirname(groups.own[UNIFIED])
    host.writable.add(parent)
    (Path(parent) / "cgroup.subtree_control").write_text("cpu")
    assert cgroup.select_driver(groups).paths("rt-run-1") == [f"{parent}/rt-run-1"]
    assert text_of(parent, "cgroup.subtree_control") == "+cpuset +memory +pids"


def test_on_a_node_the_command_that_grants_is_one_that_is_there(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "__file__", "/opt/raytools/toolkit/0.1.0/raytools/node/cgroup.py")
    with pytest.raises(RefusedError) as refused:
        cgroup.select_driver(host.v2())
    assert f"sudo env PYTHONPATH=/opt/raytools/toolkit/0.1.0 {sys.executable} -m raytools.node grant" in (
        refused.value.fix or ""
    )


def test_under_rays_own_isolation_groups_are_made_beside_it_and_the_supervisor_leaves_it(host: Host) -> None:
    groups = host.v2("unit/ray-node_0123abcd/user/workers")
    unit = groups.own[UNIFIED].partition("/ray-node_")[0]
    host.kernel.group(f"{UNIFIED}/unit/main")
    (Path(unit) / "cgroup.controllers").write_text("cpuset cpu memory pids")
    host.writable.add(unit)
    assert cgroup.select_driver(groups).paths("rt-run-1") == [f"{unit}/rt-run-1"]
    assert text_of(f"{unit}/main", "cgroup.procs") == "0"


def test_a_machine_without_any_hierarchy_says_so() -> None:
    message = refusal(OwnCgroups(None, {}, {}, ()))
    assert message.startswith("no cgroup hierarchy is mounted here")
    assert "systemd.unified_cgroup_hierarchy=1" in message


@pytest.mark.parametrize("lacking", ["memory", "cpuset"])
def test_a_machine_without_a_controller_names_it(host: Host, lacking: str) -> None:
    groups = host.v1(tuple(name for name in CONTROLLERS if name != lacking))
    assert refusal(groups).startswith(f"no mounted cgroup hierarchy has the controller {lacking}")


def test_controllers_in_different_versions_are_refused_as_such(host: Host) -> None:
    v1 = host.v1(("memory",))
    v2 = host.v2(controllers="cpuset")
    mixed = OwnCgroups("hybrid", {**v2.own, **v1.own}, {**v2.tops, **v1.tops}, ("cpuset",))
    assert "the controllers are in different cgroup versions" in refusal(mixed)


def test_every_reason_has_words_of_its_own(host: Host) -> None:
    not_granted = refusal(host.v1())
    unified = host.v2()
    undelegated = refusal(unified)
    host.read_only.add(unified.own[UNIFIED])
    messages = [not_granted, undelegated, refusal(unified), refusal(OwnCgroups(None, {}, {}, ()))]
    assert len({message.split(",")[0] for message in messages}) == 4


def test_what_is_killed_is_waited_for_as_long_as_it_becomes_fewer() -> None:
    began = time.monotonic()
    ends_after_s = [0.15 * number for number in range(1, 9)]

    def living() -> list[int]:
        return [number for number, end_s in enumerate(ends_after_s) if time.monotonic() - began < end_s]

    assert cgroup.empty_group(living, lambda: None, timeout_s=0.6) == (8, 0)


def test_what_does_not_become_less_is_given_up() -> None:
    assert cgroup.empty_group(lambda: [1, 2], lambda: None, timeout_s=0.1) == (2, 2)
