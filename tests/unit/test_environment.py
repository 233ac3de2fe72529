"""spec, lock, channels, activation: what is decided without building anything."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from raytools.config import load_config
from raytools.environment import load_lock
from raytools.environment.activate import activation, as_shell, warning
from raytools.environment.base_python import BasePython, source_files
from raytools.environment.channels import choose_channels, probe
from raytools.environment.identity import fitting_lock, identify
from raytools.environment.local_channel import require_python
from raytools.environment.lock import (
    Lock,
    misfits,
    read_lock,
    state_lock_path,
    tree_lock_path,
    write_lock,
)
from raytools.environment.pip_part import _complaint
from raytools.environment.progress import Progress
from raytools.environment.spec import EnvironmentSpec
from raytools.environment.verify import sentences
from raytools.errors import EnvironmentBuildError
from raytools.node.manifest import Difference
from raytools.planning import environment_ref
from raytools.project import Project, find_project

SPEC = EnvironmentSpec("automl", "3.11", ("conda-forge",), "local", ("libgomp",), ("optuna",))


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYTOOLS_CHANNELS", raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "cluster.yaml").write_text("environment: {pip: [optuna]}\n")
    return find_project(tmp_path / "cluster.yaml")


def conda_package(channel: str) -> dict[str, object]:
    return {
        "name": "python", "version": "3.11.7", "build": "h1_0", "build_number": 0, "subdir": "linux-64",
        "sha256": "a" * 64, "channel": channel, "url": f"{channel}/linux-64/python-3.11.7-h1_0.conda",
    }  # fmt: skip


def lock_of(spec: EnvironmentSpec, channel: str = "file:///mirror") -> Lock:
    pip = ({"name": "optuna", "version": "4.5.0", "sha256": "b" * 64},)
    reason = "RAYTOOLS_CHANNELS=local" if channel == "local" else None
    return Lock(
        spec.name, "3.11.7", "linux-64", (channel,), reason, spec.to_json(), (conda_package(channel),), pip
    )


# --- lock ---------------------------------------------------------------------------------------------


def test_a_lock_is_read_as_it_was_written_and_written_once(project: Project) -> None:
    path = tree_lock_path(project)
    assert write_lock(path, lock_of(SPEC))
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert read_lock(path) == lock_of(SPEC)
    assert not write_lock(path, read_lock(path))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_the_digest_depends_on_what_decides_the_result_and_on_nothing_else() -> None:
    lock = lock_of(SPEC)
    assert lock.environment_id == f"automl-{lock.digest[:12]}"
    assert replace(lock, reason="x", channels=("y",), spec={}, name="z").digest == lock.digest
    elsewhere = {**lock.conda[0], "url": "https://mirror/x.conda", "channel": "https://mirror"}
    assert replace(lock, conda=(elsewhere,)).digest == lock.digest
    changed = [
        replace(lock, platform="linux-aarch64"),
        replace(lock, python="3.11.8"),
        replace(lock, conda=({**lock.conda[0], "sha256": "c" * 64},)),
        replace(lock, pip=({**lock.pip[0], "version": "4.4.0"},)),
        replace(lock, pip=({**lock.pip[0], "sha256": "c" * 64},)),
        replace(lock, pip=()),
    ]
    assert len({other.digest for other in [*changed, lock]}) == len(changed) + 1


def test_a_changed_declaration_is_refused_and_the_change_is_named(project: Project) -> None:
    write_lock(tree_lock_path(project), lock_of(SPEC))
    assert fitting_lock(project, SPEC).digest == lock_of(SPEC).digest
    changed = replace(SPEC, pip=("optuna", "six"), python="3.12")
    with pytest.raises(EnvironmentBuildError) as error:
        fitting_lock(project, changed)
    assert str(error.value) == (
        "the environment was changed since it was locked (environment.python: '3.11' became '3.12'; "
        "environment.pip: added 'six'). Lock it again: raytools env lock"
    )


@pytest.mark.parametrize("has_it", [True, False])
def test_whether_ray_can_serve_clients_is_read_from_the_lock(project: Project, has_it: bool) -> None:
    config = load_config(project.config_path)
    spec = EnvironmentSpec.from_config(config)
    lock = lock_of(spec)
    grpcio = ({**lock.pip[0], "name": "grpcio"},) if has_it else ()
    write_lock(tree_lock_path(project), replace(lock, pip=(*lock.pip, *grpcio)))
    found, _ = environment_ref(project, config)
    assert found is not None
    assert found.has_grpcio is has_it


def test_what_was_never_locked_says_how_to_lock_it(project: Project) -> None:
    assert load_lock(project, load_config(project.config_path)) is None
    with pytest.raises(EnvironmentBuildError, match=r"never locked\. Lock it: raytools env lock"):
        identify(project, SPEC, Path("/opt/raytools"))


def test_the_lock_for_version_control_goes_before_the_one_of_this_machine(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(project.config_path)
    spec = EnvironmentSpec.from_config(config)
    write_lock(state_lock_path(project, "automl"), lock_of(spec, "local"))
    found = load_lock(project, config)
    assert found is not None
    assert found.is_local
    write_lock(tree_lock_path(project), lock_of(spec))
    found = load_lock(project, config)
    assert found is not None
    assert not found.is_local
    monkeypatch.setenv("RAYTOOLS_CHANNELS", "local")
    found = load_lock(project, config)
    assert found is not None
    assert found.is_local


def test_an_outdated_lock_does_not_hide_one_that_fits(project: Project) -> None:
    write_lock(tree_lock_path(project), lock_of(replace(SPEC, pip=("six",))))
    with pytest.raises(EnvironmentBuildError, match="added 'optuna', removed 'six'"):
        fitting_lock(project, SPEC)
    write_lock(state_lock_path(project, "automl"), lock_of(SPEC, "local"))  # by fallback, say
    assert fitting_lock(project, SPEC).is_local


def test_a_lock_that_was_forced_is_refused_once_it_is_not_and_there_is_no_fallback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = replace(SPEC, fallback="none")
    lock = lock_of(spec, "local")
    assert misfits(lock, spec) == ["RAYTOOLS_CHANNELS=local, which no longer holds"]
    monkeypatch.setenv("RAYTOOLS_CHANNELS", "local")
    assert misfits(lock, spec) == []


def test_two_configurations_in_one_directory_have_two_locks(tmp_path: Path) -> None:
    paths = {tree_lock_path(find_project(tmp_path / name)) for name in ("cluster.yaml", "big.yaml")}
    assert paths == {tmp_path / "cluster.lock.yaml", tmp_path / "big.lock.yaml"}


def test_an_edited_lock_is_refused(project: Project) -> None:
    path = tree_lock_path(project)
    write_lock(path, lock_of(SPEC))
    path.write_text(path.read_text().replace("4.5.0", "4.4.0"))
    with pytest.raises(EnvironmentBuildError, match="was edited: its digest does not fit"):
        read_lock(path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe\x00", b"schema: raytools.lock/1\n", b"a: 1"]
)
def test_a_damaged_lock_is_an_error_that_names_it(project: Project, content: bytes) -> None:
    path = tree_lock_path(project)
    path.write_bytes(content)
    with pytest.raises(EnvironmentBuildError, match=r"cannot use the lock .*cluster\.lock\.yaml"):
        read_lock(path)


def test_an_existing_environment_has_no_lock_and_its_own_prefix(project: Project) -> None:
    spec = replace(SPEC, prefix=Path("/data/conda/mine"))
    identity = identify(project, spec, Path("/opt/raytools"))
    assert identity.to_json() == {"id": "automl", "prefix": "/data/conda/mine", "lock_digest": None}


# --- channels -----------------------------------------------------------------------------------------


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_forced_channel_is_taken_without_asking_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYTOOLS_CHANNELS", "local")
    monkeypatch.setattr("raytools.environment.channels.probe", lambda *_: pytest.fail("asked a channel"))
    choice = choose_channels(SPEC, tmp_path, Notes())
    assert (choice.channels, choice.reason) == (("local",), "RAYTOOLS_CHANNELS=local")


def test_a_channel_variable_that_means_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYTOOLS_CHANNELS", "conda-forge")
    with pytest.raises(EnvironmentBuildError, match="RAYTOOLS_CHANNELS is 'conda-forge', expected `local`"):
        choose_channels(SPEC, tmp_path, Notes())


def test_a_directory_that_is_a_channel_answers_and_is_used(tmp_path: Path) -> None:
    (tmp_path / "mirror/noarch").mkdir(parents=True)
    (tmp_path / "mirror/noarch/repodata.json").write_text("{}")
    choice = choose_channels(replace(SPEC, channels=("./mirror",)), tmp_path, Notes())
    assert (choice.channels, choice.reason) == (((tmp_path / "mirror").as_uri(),), None)


def test_the_fallback_is_taken_if_no_channel_answers_and_the_reason_is_kept(tmp_path: Path) -> None:
    notes = Notes()
    choice = choose_channels(replace(SPEC, channels=("./nothing-here",)), tmp_path, notes)
    assert choice.channels == ("local",)
    assert choice.reason is not None
    assert choice.reason.startswith(f"no declared channel answered ({(tmp_path / 'nothing-here').as_uri()}")
    assert choice.reason in notes.notes[0]


def test_without_a_fallback_silence_is_an_error_that_names_the_channels(tmp_path: Path) -> None:
    spec = replace(SPEC, channels=("./nothing-here",), fallback="none")
    with pytest.raises(EnvironmentBuildError, match=r"no declared conda channel answers \(file:///.*nothing"):
        choose_channels(spec, tmp_path, Notes())


def test_one_channel_that_does_not_answer_is_an_error_if_another_does(tmp_path: Path) -> None:
    (tmp_path / "mirror/noarch").mkdir(parents=True)
    (tmp_path / "mirror/noarch/repodata.json").write_text("{}")
    spec = replace(SPEC, channels=("./mirror", "./nothing-here"))
    with pytest.raises(EnvironmentBuildError, match="not every declared channel answers"):
        choose_channels(spec, tmp_path, Notes())


def test_a_channel_that_never_answers_costs_the_time_allowed_and_not_more() -> None:
    import socket
    import time

    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        found = probe([f"{url}/one", f"{url}/two"], 0.5)
        assert time.monotonic() - started < 1.5
    assert all(failure for failure in found.values())


def test_the_local_channel_refuses_another_python_and_names_both() -> None:
    with pytest.raises(EnvironmentBuildError, match=r"has Python 3\.\d+\.\d+.*expected Python 3\.99"):
        require_python("3.99")


# --- base Python --------------------------------------------------------------------------------------


def test_the_packaged_library_leaves_out_tests_byte_code_and_what_is_installed(tmp_path: Path) -> None:
    wanted = ["os.py", "json/__init__.py", "test/__init__.py", "test/support/__init__.py", "lib-dynload/x.so"]
    unwanted = [
        "test/test_os.py", "test/data/x.txt", "unittest/test/test_x.py", "idlelib/idle.py",
        "lib2to3/tests/x.py", "json/__pycache__/x.pyc", "site-packages/numpy.py", "dist-packages/apt.py",
        "EXTERNALLY-MANAGED",
        "sitecustomize.py", "config-3.11/libpython3.11.a",
    ]  # fmt: skip
    for name in wanted + unwanted:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    base = BasePython(tmp_path / "python", tmp_path, tmp_path, tmp_path / "include", "3.11.7", debian=False)
    assert sorted(relative for _, relative in source_files(base)) == sorted(wanted)


# --- what people see ----------------------------------------------------------------------------------


def test_activation_survives_any_path_and_keeps_what_was_in_the_variables(tmp_path: Path) -> None:
    prefix = tmp_path / "it's a $HOME; `dir`"
    lines = as_shell({**activation(prefix, tmp_path), "PYTHONPATH": "/tool kit"})
    script = f'{lines}printf "%s\\n" "$PATH" "$CONDA_PREFIX" "$PYTHONPATH"'
    done = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": "/bin:/usr/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{prefix}/bin:/bin:/usr/bin", str(prefix), "/tool kit"]


def test_activation_takes_address_and_token_from_the_nodes_plan(tmp_path: Path) -> None:
    ray = '{"gcs_address": "192.0.2.1:6379", "auth": "token", "token_path": "/r/token", "start_args": []}'
    (tmp_path / "node.json").write_text(f'{{"root": "/r", "ray": {ray}, "toolkit": "/r/toolkit/1"}}')
    found = activation(Path("/r/envs/x"), tmp_path)
    assert found["RAY_ADDRESS"] == "192.0.2.1:6379"
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_AUTH_TOKEN_PATH"] == "/r/token"
    assert found["PYTHONPATH"] == "/r/toolkit/1"
    assert warning(tmp_path) is None


def test_under_rays_isolation_activation_warns_of_drivers_from_outside(tmp_path: Path) -> None:
    ray = '{"gcs_address": "a:1", "auth": "disabled", "start_args": ["--cgroup-path=/sys/fs/cgroup/unit"]}'
    node = (
        f'{{"root": "/r", "ray": {ray}, "toolkit": "/r/toolkit/1", "environment": {{"prefix": "/r/envs/x"}}}}'
    )
    (tmp_path / "node.json").write_text(node)
    assert (warning(tmp_path) or "").endswith(
        "sudo env PYTHONPATH=/r/toolkit/1 /r/envs/x/bin/python -m raytools.node driver PROGRAM"
    )


def test_a_package_with_thousands_of_changed_files_does_not_bury_the_others() -> None:
    many = [Difference("file", "changed", f"ray/{number}.py", "ray") for number in range(5000)]
    found = [Difference("package", "changed", "ray", None, "2.58.1", "2.57.0"), *many]
    found.append(Difference("file", "deleted", "zlib.so", "zlib"))
    lines = list(sentences(tuple(found)))
    assert lines[0] == "package ray: locked 2.58.1, found 2.57.0"
    assert "deleted zlib.so (package zlib)" in lines
    assert lines[-1] == "... and 4990 more files of package ray (--json lists all)"


def test_pips_own_error_is_shown_without_its_warnings() -> None:
    text = "WARNING: location ignored\nERROR: No matching distribution found for optunna\n"
    assert _complaint(text, []) == "ERROR: No matching distribution found for optunna"
    assert _complaint("", ["Collecting x", "Killed"]) == "Collecting x / Killed"
