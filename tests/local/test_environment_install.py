"""A real environment, packed and installed as nodes do it: interrupted, damaged, twice at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import raytools
from raytools.node.manifest import compare

from .test_environment import CONFIG, Lab, new_lab
from .test_environment import built as built  # the fixtures
from .test_environment import wheels as wheels

pytestmark = pytest.mark.timeout(300)


@dataclass
class Node:
    """A machine's `<root>` that has an archive and no environment. It is where the archive was built, as a
    prefix is written into an environment's files; the built one is aside."""

    root: Path
    archive: dict[str, Any]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "raytools.node", "environment", *arguments, "--root", str(self.root)]

    def install_arguments(self, **changes: str) -> list[str]:
        options = {key: str(self.archive[key]) for key in ("id", "sha256")}
        options |= {"archive": str(self.archive["path"]), **changes}
        return ["install", *(f"--{name}={value}" for name, value in options.items())]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> Any:
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def fails(self, *arguments: str) -> str:
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, timeout=200
        )
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    @property
    def prefix(self) -> Path:
        return self.root / "envs" / str(self.archive["id"])

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.root / "envs").iterdir())


@pytest.fixture(scope="module")
def archive(built: Lab) -> dict[str, Any]:
    found = built.json("pack")
    assert found["changed"] is True
    return dict(found)


@pytest.fixture
def node(built: Lab, archive: dict[str, Any]) -> Iterator[Node]:
    root = built.directory / ".raytools"
    (root / "envs").rename(root / "built")
    try:
        yield Node(root, archive)
    finally:
        shutil.rmtree(root / "envs", ignore_errors=True)
        (root / "built").rename(root / "envs")


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_packed_environment_is_packed_once(built: Lab, archive: dict[str, Any]) -> None:
    again = built.json("pack")
    assert again["changed"] is False
    assert (again["sha256"], again["path"]) == (archive["sha256"], archive["path"])


def test_what_is_installed_works_and_is_what_was_built(node: Node, built: Lab) -> None:
    answer = node.run(*node.install_arguments())
    assert (answer["changed"], answer["content_digest"]) == (True, node.archive["content_digest"])
    assert node.run(*node.install_arguments(archive="/nonexistent"))["changed"] is False
    assert not (node.root / "envs/current").exists()
    assert node.run("switch", f"--id={node.archive['id']}")["changed"] is True
    assert built.json("verify")["verdict"] == "clean"
    assert compare(node.prefix, quick=True) == []
    assert built.python_prints("import demo_package; demo_package.main()") == "demo 1.0"


def test_byte_code_is_valid_where_it_is_installed(node: Node) -> None:
    node.run(*node.install_arguments())
    code = "import json, demo_package"
    command = [str(node.prefix / "bin/python"), "-I", "-v", "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "demo_package/__init__.py" in said
    assert "wrote" not in said
    assert "bytecode is stale" not in said


def oldest_python() -> str | None:
    """A Python 3.10 that starts: a shim of pyenv may be there without one."""
    candidates = [shutil.which("python3.10"), *Path.home().glob(".pyenv/versions/3.10.*/bin/python")]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "-V"], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    return None


@pytest.mark.skipif(oldest_python() is None, reason="no Python 3.10 on this machine")
def test_the_oldest_python_installs_without_any_package(node: Node, tmp_path: Path) -> None:
    python = oldest_python()
    (tmp_path / "raytools").symlink_to(Path(__file__).parents[2] / "raytools")
    command = [str(python), "-S", *node.command(*node.install_arguments())[1:]]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed"] is True


@pytest.mark.parametrize("part", ["unpacking", "comparing"])
def test_killed_in_the_middle_the_old_one_stays_in_use_and_the_next_call_completes(
    node: Node, part: str
) -> None:
    old = node.root / "envs" / "small-000000000000"
    shutil.copytree(node.root / "built" / node.prefix.name, old, symlinks=True)
    (node.root / "envs/current").symlink_to(old.name)
    with node.start(*node.install_arguments()) as process:
        assert process.stderr is not None
        while part not in process.stderr.readline():
            pass
        wait_for(lambda: any(name.startswith(f".{node.prefix.name}.part-") for name in node.names()))
        os.kill(process.pid, signal.SIGKILL)  # the program alone: tar lives on for a moment
        process.wait()
        assert not node.prefix.exists()
        assert (node.root / "envs/current").resolve() == old
        assert node.run(*node.install_arguments())["changed"] is True
    assert node.names() == [".lock", "current", old.name, node.prefix.name]
    assert compare(node.prefix) == []


def test_of_two_installations_at_once_one_installs_and_the_other_waits_for_it(node: Node) -> None:
    arguments = node.install_arguments()
    with node.start(*arguments) as one, node.start(*arguments) as other:
        outputs = [process.communicate(timeout=200) for process in (one, other)]
    answers = [json.loads(output) for output, _ in outputs]
    assert sorted(answer["changed"] for answer in answers) == [False, True]
    assert sum("waiting for another" in complaint for _, complaint in outputs) == 1
    assert node.names() == [".lock", node.prefix.name]


def test_a_truncated_archive_and_a_wrong_digest_install_nothing(node: Node, tmp_path: Path) -> None:
    cut_off = tmp_path / "cut.tar.zst"
    content = Path(node.archive["path"]).read_bytes()
    cut_off.write_bytes(content[: len(content) // 2])
    complaint = node.fails(*node.install_arguments(archive=str(cut_off)))
    assert f"{len(content) // 2} bytes (it ends in the middle)" in complaint
    complaint = node.fails(*node.install_arguments(sha256="0" * 64))
    assert f"{node.archive['sha256']}, expected sha256 {'0' * 64}" in complaint
    assert node.names() == [".lock"]


def test_a_changed_environment_is_installed_again_if_asked(node: Node) -> None:
    node.run(*node.install_arguments())
    (node.prefix / "bin/demo").write_text("edited")
    assert node.run(*node.install_arguments())["changed"] is False
    assert node.run(*node.install_arguments(), "--again")["changed"] is True
    assert compare(node.prefix) == []
    assert node.names() == [".lock", node.prefix.name]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
@pytest.mark.parametrize("checked_before", [True, False])
def test_a_full_disk_installs_nothing_and_room_makes_it_work(node: Node, checked_before: bool) -> None:
    directory = node.root / "envs"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(directory)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {mounted.stderr.strip()}")
    try:
        size = {"size-bytes": str(node.archive["unpacked_bytes"])} if checked_before else {}
        complaint = node.fails(*node.install_arguments(**size))
        expected = "has 20 MiB free, expected" if checked_before else "became full, nothing was installed"
        assert expected in complaint
        assert "raytools env prune" in complaint
        assert node.names() == [".lock"]
        subprocess.run(["mount", "-o", "remount,size=1g", str(directory)], check=True)
        assert node.run(*node.install_arguments(**size))["changed"] is True
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_whoever_installs_it_owns_it_and_a_strict_umask_hides_nothing(node: Node) -> None:
    # neither root's Python nor the checkout need be open to others
    shutil.copytree(Path(raytools.__file__).parent, node.root / "code/raytools")
    subprocess.run(["chmod", "-R", "a+rX", node.root / "code", Path(node.archive["path"]).parent], check=True)
    (node.root / "envs").mkdir()
    shutil.chown(node.root / "envs", 65534, 65534)
    python = node.root / "built" / node.prefix.name / "bin/python"
    command = [*AS_NOBODY, "sh", "-c", 'umask 077; exec "$@"', "-", str(python), *node.command()[1:]]
    command[-2:] = [*node.install_arguments(), *command[-2:]]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(node.root / "code"), "PYTHONSAFEPATH": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")
    finally:
        shutil.rmtree(node.root / "code")
    assert done.returncode == 0, done.stderr
    assert compare(node.prefix) == []
    assert {path.lstat().st_uid for path in (node.prefix, *node.prefix.rglob("*"))} == {65534}


@contextlib.contextmanager
def sleeping(program: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([program, "-c", "import time; print(1, flush=True); time.sleep(99)"],
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_pruning_leaves_what_a_living_process_uses(node: Node) -> None:
    node.run(*node.install_arguments())
    with sleeping(node.prefix / "bin/python") as process:
        listed = node.run("list")["environments"][0]
        assert (listed["in_use"], listed["processes"][0]["pid"]) == (True, process.pid)
        answer = node.run("prune", "--ignore-unseen")
        assert answer["removed"] == []
        assert f"(process {process.pid} of" in answer["kept"][0]["why"]
    assert [one["id"] for one in node.run("prune", "--ignore-unseen")["removed"]] == [node.archive["id"]]
    assert node.names() == [".lock"]


def test_pruning_leaves_an_environment_of_which_only_a_library_is_used(node: Node) -> None:
    node.run(*node.install_arguments())
    library = next((node.prefix / "lib").glob("libgomp.so.1"))
    code = f"import ctypes, time; ctypes.CDLL({str(library)!r}); print(1, flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert node.run("prune", "--ignore-unseen")["removed"] == []
        process.kill()


# --- all nodes ----------------------------------------------------------------------------------------


UNREACHABLE = (
    "workers: {hosts: {gone: {ansible_host: 127.0.0.1, ansible_port: 1, raytools_root: /tmp/nowhere}}}\n"
)


def test_the_list_names_nodes_that_do_not_answer_and_shows_the_others(built: Lab) -> None:
    inventory = built.directory / "inventory/hosts.yml"
    before = inventory.read_text()
    inventory.write_text(before + UNREACHABLE)
    try:
        with built.start("list", "--json") as process:
            output, complaints = process.communicate(timeout=100)
    finally:
        inventory.write_text(before)
    assert process.returncode == 2, complaints
    found = json.loads(output)
    (identifier,) = found["environments"]
    assert found["declared"] == identifier
    assert found["environments"][identifier]["nodes"] == ["localhost"]
    assert list(found["errors"]) == ["gone"]
    assert "gone: " in complaints


def test_pruning_shows_asks_and_removes_only_after_a_yes(built: Lab) -> None:
    root = built.directory / ".raytools"
    for number in (1, 2):
        (root / f"envs/small-{number:012x}/bin").mkdir(parents=True)
    current = built.current.name

    def answered(text: str, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "raytools", "env", "prune", "--ignore-unseen", *arguments]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False,
            cwd=built.directory, env=built.environment(),
        )  # fmt: skip
        return done.returncode, done.stdout

    code, output = answered("n\n")
    assert code == 0
    assert "localhost: would remove small-000000000001 (unfinished)" in output
    assert f"localhost: keeps {current} (current)" in output
    assert output.endswith("nothing was removed\n")
    assert (root / "envs/small-000000000001").exists()
    code, output = answered("y\n")
    assert (code, output.splitlines()[-1]) == (0, "removed from localhost")
    assert not (root / "envs/small-000000000001").exists()
    assert built.json("prune", "--yes")["changed"] is False


def test_an_upgrade_is_rolled_back_and_what_to_type_next_is_said(built: Lab, tmp_path: Path) -> None:
    lab = new_lab(tmp_path / "project", built.wheels, built)
    old = lab.json("lock")["id"]
    lab.json("build")
    config = lab.directory / "cluster.yaml"
    config.write_text(CONFIG.replace("==1.0", "==1.1"))
    new = lab.json("lock")["id"]
    assert new != old
    complaint = lab.raytools("rollback", exit_code=2)
    assert 'environment:\n  pip: ["demo-package==1.0"' in complaint
    assert "nothing was changed" in complaint
    config.write_text(CONFIG)
    said = lab.raytools("rollback")
    assert f"{old} is locked again" in said
    assert "still installed on: localhost" in said
    assert said.endswith("Now: ansible-playbook playbooks/upgrade.yml\n")
    assert lab.json("lock")["changed"] is False
    assert lab.json("build")["changed"] is False
