"""Environments built for real on this machine: channel `local`, pip from a directory, no network."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raytools.environment import local_channel
from raytools.environment.base_python import patchelf, running_python
from raytools.environment.local_channel import ensure_local_channel
from raytools.environment.progress import SILENT

pytestmark = pytest.mark.timeout(300)  # builds, on machines that may be busy

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
SITE = f"lib/python{PYTHON}/site-packages"
CONFIG = f'environment: {{name: small, python: "{PYTHON}", conda: [libgomp], pip: ["demo-package==1.0"]}}\n'
INVENTORY = "head: {hosts: {localhost: {ansible_connection: local, raytools_root: .raytools}}}\n"


def make_wheel(directory: Path, name: str, version: str, files: dict[str, bytes], scripts: str = "") -> None:
    """A wheel as pip wants it, made by hand."""
    info = f"{name}-{version}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": scripts.encode(),
    }
    lines = []
    for path, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}\n")
    members[f"{info}/RECORD"] = ("".join(lines) + f"{info}/RECORD,,\n").encode()
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)


@dataclass
class Lab:
    """A project with its wheels, driven as people drive it."""

    directory: Path
    wheels: Path
    python: list[str] = field(default_factory=lambda: [sys.executable])
    variables: dict[str, str] = field(default_factory=lambda: {"RAYTOOLS_CHANNELS": "local"})

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "RAYTOOLS_"))}
        pip = {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        return {**kept, **pip, **self.variables}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.python, "-m", "raytools", "env", *arguments],
            cwd=self.directory,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def raytools(self, *arguments: str, exit_code: int = 0) -> str:
        with self.start(*arguments) as process:
            output, complaints = process.communicate(timeout=250)
        assert process.returncode == exit_code, complaints
        return output if exit_code < 2 else complaints

    def json(self, *arguments: str, exit_code: int = 0) -> Any:
        return json.loads(self.raytools(*arguments, "--json", exit_code=exit_code))

    @property
    def current(self) -> Path:
        return (self.directory / ".raytools/envs/current").resolve()

    def python_prints(self, code: str) -> str:
        command = [str(self.current / "bin/python"), "-I", "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def new_lab(directory: Path, wheels: Path, like: Lab | None = None) -> Lab:
    """A new project; with the channel `local` of another one, which is seconds of packing less."""
    (directory / "inventory").mkdir(parents=True)
    if like is not None:
        shutil.copytree(like.directory / ".raytools/channel", directory / ".raytools/channel")
    (directory / "inventory/hosts.yml").write_text(INVENTORY)
    (directory / "cluster.yaml").write_text(CONFIG)
    return Lab(directory, wheels)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "1.1"):
        code = f"def main():\n    print('demo {version}')\n".encode()
        scripts = "[console_scripts]\ndemo = demo_package:main\n"
        make_wheel(directory, "demo_package", version, {"demo_package/__init__.py": code}, scripts)
    make_wheel(directory, "psutil", "99.0", {"psutil/__init__.py": b"__version__ = '99.0'\n"})
    return directory


@pytest.fixture(scope="module")
def built(wheels: Path) -> Iterator[Lab]:
    """Locked and built once, under a umask that hides everything."""
    # not pytest's own directory: that is closed to other users, whom the environment has to serve
    with tempfile.TemporaryDirectory(prefix="raytools-test-") as directory:
        Path(directory).chmod(0o755)
        lab = new_lab(Path(directory, "project"), wheels)
        before = os.umask(0o077)
        try:
            assert lab.json("lock")["changed"]
            assert lab.json("build")["changed"]
        finally:
            os.umask(before)
        (lab.directory / ".raytools").chmod(0o755)
        yield lab


@pytest.fixture
def clean(built: Lab) -> Iterator[Lab]:
    """The built environment, clean before and put back by the test itself."""
    assert built.json("verify")["verdict"] == "clean"
    yield built
    found = built.json("verify")
    assert found["verdict"] == "clean", found["differences"]


# --- lock and build -----------------------------------------------------------------------------------


def test_the_environment_has_its_own_python_pip_and_packages(built: Lab) -> None:
    assert built.python_prints("import sys; print(sys.prefix)") == str(built.current)
    assert built.python_prints("import os; print(os.__file__)").startswith(str(built.current))
    demo = subprocess.run([built.current / "bin/demo"], capture_output=True, text=True, check=True)
    assert demo.stdout == "demo 1.0\n"
    pip = subprocess.run([built.current / "bin/pip", "list"], capture_output=True, text=True, check=True)
    assert "demo_package" in pip.stdout.replace("-", "_")


def test_conda_finds_its_metadata_and_no_path_of_the_builder_in_them(built: Lab) -> None:
    records = [json.loads(path.read_text()) for path in (built.current / "conda-meta").glob("*.json")]
    assert sorted(record["name"] for record in records) == ["libgomp", "pip", "python"]
    assert {record["channel"] for record in records} == {"local"}
    assert not any(str(built.directory) in record["url"] for record in records)
    requested = {record["name"]: record["requested_specs"] for record in records}
    assert requested["libgomp"] == ["libgomp"]


def test_files_are_copies_and_byte_code_is_there(built: Lab) -> None:
    files = [path for path in built.current.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if path.stat().st_nlink > 1]
    assert list((built.current / SITE / "demo_package/__pycache__").glob("*.pyc"))


def test_a_second_lock_and_build_change_nothing_and_ask_nobody(built: Lab) -> None:
    lock = next((built.directory / ".raytools/locks").iterdir())
    before = lock.read_bytes(), lock.stat().st_mtime_ns, built.current.stat().st_mtime_ns
    nobody = Lab(built.directory, Path("/nonexistent"))
    assert nobody.json("lock")["changed"] is False
    assert nobody.json("build")["changed"] is False
    assert before == (lock.read_bytes(), lock.stat().st_mtime_ns, built.current.stat().st_mtime_ns)


def test_locking_anew_with_the_same_result_leaves_the_lock_as_it_is(built: Lab) -> None:
    lock = next((built.directory / ".raytools/locks").iterdir())
    before = lock.read_bytes()
    assert built.json("lock", "--upgrade")["changed"] is False
    assert lock.read_bytes() == before


def test_two_builds_of_a_lock_have_the_same_content(built: Lab) -> None:
    first = built.json("build")
    second = built.json("build", "--rebuild")
    assert (first["changed"], second["changed"]) == (False, True)
    assert first["content_digest"] == second["content_digest"]


def test_a_changed_declaration_is_refused_until_it_is_locked_again(built: Lab, wheels: Path) -> None:
    config = built.directory / "cluster.yaml"
    config.write_text(CONFIG.replace("==1.0", "==1.1"))
    try:
        complaint = built.raytools("build", exit_code=2)
        assert "added 'demo-package==1.1', removed 'demo-package==1.0'" in complaint
        assert "Lock it again: raytools env lock" in complaint
    finally:
        config.write_text(CONFIG)


def test_a_package_that_does_not_exist_is_named_by_pips_own_error(built: Lab, tmp_path: Path) -> None:
    lab = new_lab(tmp_path / "other", built.wheels, built)
    (lab.directory / "cluster.yaml").write_text(CONFIG.replace("demo-package", "optunna"))
    complaint = lab.raytools("lock", exit_code=2)
    assert "pip cannot resolve environment.pip" in complaint
    assert "optunna==1.0" in complaint
    assert "Traceback" not in complaint


def test_what_channel_local_does_not_offer_is_said(built: Lab, tmp_path: Path) -> None:
    lab = new_lab(tmp_path / "other", built.wheels, built)
    (lab.directory / "cluster.yaml").write_text(CONFIG.replace("[libgomp]", "[gcc]"))
    complaint = lab.raytools("lock", exit_code=2)
    assert "Channel `local` offers python, pip, libgomp and nothing else" in complaint


def test_an_interrupted_build_is_not_there_and_the_next_starts_over(built: Lab, tmp_path: Path) -> None:
    lab = new_lab(tmp_path / "project", built.wheels, built)
    lab.json("lock")
    with lab.start("build") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "compiling" in line:
                break
        os.killpg(process.pid, signal.SIGKILL)
    prefix = next((lab.directory / ".raytools/envs").glob("small-*"))
    assert (prefix / "bin/python").exists()
    assert "was not built" in lab.raytools("verify", exit_code=2)
    (prefix / "half").touch()
    assert lab.json("build")["changed"] is True
    assert not (prefix / "half").exists()
    assert lab.json("verify")["verdict"] == "clean"


def test_of_two_builds_at_once_one_builds_and_the_other_waits_for_it(built: Lab, tmp_path: Path) -> None:
    lab = new_lab(tmp_path / "project", built.wheels, built)
    lab.json("lock")
    with lab.start("build", "--json") as one, lab.start("build", "--json") as other:
        answers = [json.loads(process.communicate(timeout=250)[0]) for process in (one, other)]
    assert sorted(answer["changed"] for answer in answers) == [False, True]
    assert answers[0]["content_digest"] == answers[1]["content_digest"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_can_use_an_environment_that_root_built_with_a_strict_umask(built: Lab) -> None:
    code = "import demo_package, psutil, ctypes; ctypes.CDLL('libgomp.so.1'); demo_package.main()"
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command += [str(built.current / "bin/python"), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert (done.stdout, done.stderr) == ("demo 1.0\n", "")
    closed = [
        path for path in built.current.rglob("*") if not path.is_symlink() and not path.stat().st_mode & 4
    ]
    assert not closed


# --- libgomp ------------------------------------------------------------------------------------------


def test_a_library_that_a_library_loads_gets_the_environments_libgomp(built: Lab, tmp_path: Path) -> None:
    module = tmp_path / "needs_gomp.so"  # like LightGBM's: it needs libgomp and has no search path
    shutil.copy(next((built.current / "lib").rglob("lib-dynload/*.so")), module)
    patchelf("--remove-rpath", str(module))
    patchelf("--add-needed", "libgomp.so.1", str(module))
    code = (
        f"import ctypes; ctypes.CDLL({str(module)!r});"
        "print([line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line][0])"
    )
    assert built.python_prints(code) == str(built.current / "lib/libgomp.so.1")


def test_a_machine_without_libgomp_takes_the_one_a_wheel_bundles(
    built: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = built.current / "lib/libgomp.so.1"
    bundled = tmp_path / "libgomp-e985bcbb.so.1.0.0"
    shutil.copy(original, bundled)
    patchelf("--set-soname", bundled.name, str(bundled))  # as auditwheel renames it
    files = {f"scikit_learn.libs/{bundled.name}": bundled.read_bytes()}
    make_wheel(tmp_path / "wheels", "scikit_learn", "9.9", files)
    lab = Lab(built.directory, tmp_path / "wheels")
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(local_channel, "_installed_libgomp", lambda _: None)
    ensure_local_channel(tmp_path / "channel", ["libgomp"], SILENT)
    package = next((tmp_path / "channel").rglob("libgomp-*.conda"))
    unpacked = tmp_path / "unpacked"
    import zstandard

    with zipfile.ZipFile(package) as archive:
        name = next(name for name in archive.namelist() if name.startswith("pkg-"))
        data = zstandard.ZstdDecompressor().stream_reader(archive.read(name)).read()
    unpacked.mkdir()
    subprocess.run(["tar", "-x", "-C", str(unpacked)], input=data, check=True)
    assert patchelf("--print-soname", str(unpacked / "lib/libgomp.so.1")).strip() == "libgomp.so.1"


# --- verify -------------------------------------------------------------------------------------------


def test_an_edited_a_deleted_and_an_added_file_are_named_and_putting_them_back_makes_it_clean(
    clean: Lab,
) -> None:
    edited, deleted = clean.current / SITE / "demo_package/__init__.py", clean.current / "lib/libgomp.so.1"
    added = clean.current / "bin/stray"
    before = edited.read_bytes(), deleted.read_bytes(), deleted.stat().st_mode
    edited.write_bytes(before[0] + b"# edited\n")
    deleted.unlink()
    added.touch()
    found = clean.json("verify", exit_code=1)
    assert found["verdict"] == "drift"
    assert [(item["change"], item["name"], item["package"]) for item in found["differences"]] == [
        ("added", "bin/stray", None),
        ("deleted", "lib/libgomp.so.1", "libgomp"),
        ("changed", f"{SITE}/demo_package/__init__.py", "demo-package"),
    ]
    assert "deleted lib/libgomp.so.1 (package libgomp)" in clean.raytools("verify", exit_code=1)
    edited.write_bytes(before[0])
    deleted.write_bytes(before[1])
    deleted.chmod(before[2] & 0o777)
    added.unlink()


def test_another_version_of_a_package_is_named_and_the_locked_one_makes_it_clean(clean: Lab) -> None:
    def pip_install(version: str) -> None:
        command = [clean.current / "bin/pip", "install", "-q", "--no-compile", f"demo-package=={version}"]
        subprocess.run(command, env=clean.environment(), check=True, timeout=60)

    record = clean.current / SITE / "demo_package-1.0.dist-info"
    kept = {path.name: path.read_bytes() for path in record.iterdir()}
    script = (clean.current / "bin/demo").read_bytes()
    pip_install("1.1")
    found = clean.raytools("verify", exit_code=1)
    assert found.startswith("package demo-package: locked 1.0, found 1.1\n")
    pip_install("1.0")
    for name in {path.name for path in record.iterdir()} - kept.keys():
        (record / name).unlink()
    for name, content in kept.items():  # this pip writes other notes than the one that built
        (record / name).write_bytes(content)
    (clean.current / "bin/demo").write_bytes(script)


# --- other channels, other Pythons, other people's environments -----------------------------------------


def test_the_same_python_gives_the_same_packages(built: Lab, tmp_path: Path) -> None:
    ensure_local_channel(tmp_path / "channel", ["python", "pip", "libgomp"], SILENT)

    def digests(channel: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in channel.rglob("*.conda")}

    assert len(digests(tmp_path / "channel")) == 3
    assert digests(tmp_path / "channel") == digests(built.directory / ".raytools/channel")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """The test's output is for failures."""


@contextlib.contextmanager
def served(directory: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_lock_from_a_declared_channel_lies_beside_the_configuration_and_keeps_its_addresses(
    built: Lab, tmp_path: Path
) -> None:
    lab = new_lab(tmp_path / "project", built.wheels)
    lab.variables = {"NO_PROXY": "127.0.0.1"}
    with served(built.directory / ".raytools/channel") as url:
        config = CONFIG.replace("{name: small", f'{{name: small, channels: ["{url}"], fallback: none')
        (lab.directory / "cluster.yaml").write_text(config)
        answer = lab.json("lock")
        assert answer["path"] == str(lab.directory / "cluster.lock.yaml")
        assert (answer["channels"], answer["reason"]) == ([url], None)
        assert f"{url}/linux-64/python-" in Path(answer["path"]).read_text()
        assert lab.json("build")["changed"] is True
    assert lab.python_prints("import demo_package; demo_package.main()") == "demo 1.0"
    assert lab.json("build")["changed"] is False  # the channel is gone; nobody is asked


def test_the_fallback_is_said_aloud_and_recorded(built: Lab, tmp_path: Path) -> None:
    lab = new_lab(tmp_path / "project", built.wheels, built)
    lab.variables = {}
    config = CONFIG.replace("{name: small", "{name: small, channels: [./no-channel-here]")
    (lab.directory / "cluster.yaml").write_text(config)
    with lab.start("lock") as process:
        _, complaints = process.communicate(timeout=250)
    assert process.returncode == 0
    assert "note: no declared channel answered" in complaints
    answer = lab.json("lock")
    assert answer["changed"] is False
    assert answer["reason"].startswith("no declared channel answered")
    assert answer["path"] == str(lab.directory / ".raytools/locks/small.lock.yaml")


def system_python() -> Path | None:
    """Debian's or Ubuntu's own Python, if it can load what is installed for ours."""
    python = Path("/usr/bin/python3")
    if not python.exists() or running_python().executable == python.resolve():
        return None
    code = "import sys, sysconfig; print(*sys.version_info[:2], sep='.', end=' ');"
    code += "print('deb_system' in sysconfig.get_scheme_names())"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return python if done.stdout.strip() == f"{PYTHON} True" else None


@pytest.mark.skipif(
    system_python() is None, reason="no Debian python3 of our version beside the one that runs"
)
def test_debians_own_python_becomes_a_self_contained_environment(wheels: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", venv], check=True)
    ours = sysconfig.get_path("purelib")
    (venv / SITE / "ours.pth").write_text(f"{ours}\n{Path(__file__).parents[2]}\n")
    lab = new_lab(tmp_path / "project", wheels)
    lab.python = [str(venv / "bin/python")]
    lab.variables["PATH"] = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    lab.json("lock")
    lab.json("build")
    prefix = str(lab.current)
    code = "import sys, os, sysconfig, demo_package, ctypes; ctypes.CDLL('libgomp.so.1');"
    code += (
        "print(sys.prefix, os.__file__, sysconfig.get_path('purelib'), demo_package.__file__, *sys.path[1:])"
    )
    code += ";print([line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line][0])"
    for path in lab.python_prints(code).split():
        assert path.startswith(prefix)
        assert "dist-packages" not in path
    assert lab.json("verify")["verdict"] == "clean"


@pytest.fixture
def theirs(tmp_path: Path, wheels: Path) -> Lab:
    """Somebody's own environment, and a configuration that names it."""
    venv = tmp_path / "theirs"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    for name in ("ray", "psutil"):
        (venv / SITE / f"{name}.py").write_text("__version__ = '1'\n")
    lab = new_lab(tmp_path / "project", wheels)
    config = f'environment: {{name: theirs, python: "{PYTHON}", prefix: {venv}}}\n'
    (lab.directory / "cluster.yaml").write_text(config)
    return lab


def test_an_existing_environment_is_noted_outside_and_never_written_to(theirs: Lab) -> None:
    venv = theirs.directory.parent / "theirs"

    def listing() -> list[tuple[str, int]]:
        return sorted((str(path), path.lstat().st_mtime_ns) for path in [venv, *venv.rglob("*")])

    before = listing()
    assert theirs.json("lock")["changed"] is False
    answer = theirs.json("build")
    assert (answer["changed"], answer["prefix"], answer["lock_digest"]) == (True, str(venv), None)
    assert theirs.json("build")["changed"] is False
    assert theirs.json("verify")["verdict"] == "clean"
    assert listing() == before
    assert theirs.current == venv
    (venv / SITE / "ray.py").write_text("__version__ = '2'\n")
    assert [item["name"] for item in theirs.json("verify", exit_code=1)["differences"]] == [f"{SITE}/ray.py"]
    assert theirs.json("build")["changed"] is True
    assert theirs.json("verify")["verdict"] == "clean"


def test_an_existing_environment_without_ray_is_refused_with_the_command_that_installs_it(
    theirs: Lab,
) -> None:
    venv = theirs.directory.parent / "theirs"
    (venv / SITE / "ray.py").unlink()
    complaint = theirs.raytools("build", exit_code=2)
    assert "cannot import ray (No module named 'ray')" in complaint
    assert f"{venv}/bin/python -m pip install ray psutil" in complaint
