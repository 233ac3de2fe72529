"""Packing, installing, switching, pruning and rolling back, with environments of a few files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raytools.environment.archive import Archive, make_archive
from raytools.environment.former import former_directory, keep_former, roll_back
from raytools.environment.lock import Lock, read_current_lock, state_lock_path, tree_lock_path, write_lock
from raytools.environment.nodes import by_environment, to_keep
from raytools.environment.progress import SILENT
from raytools.environment.spec import EnvironmentSpec
from raytools.errors import EnvironmentBuildError, RaytoolsError
from raytools.node import environment_install, environment_use, manifest
from raytools.node.environment_install import install
from raytools.node.environment_inventory import list_environments, overview, prune, switch
from raytools.node.zstd import CorruptError, Decompressor
from raytools.project import Project, find_project

ID = f"small-{'ab' * 6}"
DIGEST = "ab" * 32


def make_environment(root: Path, identifier: str = ID, files: dict[str, str] | None = None) -> Path:
    """What a build leaves, with a Python that does nothing."""
    prefix = root / "envs" / identifier
    for path, text in {"bin/python": "#!/bin/sh\n", "lib/data": identifier, **(files or {})}.items():
        (prefix / path).parent.mkdir(parents=True, exist_ok=True)
        (prefix / path).write_text(text)
    (prefix / "bin/python").chmod(0o755)
    note(prefix)
    return prefix


def note(prefix: Path) -> None:
    found = manifest.make_manifest(prefix)
    directory = manifest.own_directory(prefix)
    directory.mkdir(exist_ok=True)
    manifest.write_manifest(directory, found)
    notes = {
        "schema": manifest.ENVIRONMENT_SCHEMA,
        "id": prefix.name,
        "prefix": str(prefix),
        "lock_digest": prefix.name[-12:] + DIGEST[12:],
        "content_digest": manifest.content_digest(found.entries),
        "files": len(found.entries),
        "size_bytes": found.size_bytes,
        "built_at": "2026-01-01T00:00:00Z",
    }
    manifest.write_json(directory / manifest.ENVIRONMENT_NAME, notes)


def moved_away(prefix: Path) -> Path:
    """So that the same place is a node's that has nothing yet."""
    target = prefix.parents[2] / f"built-{len(list(prefix.parents[2].glob('built-*')))}"
    prefix.rename(target)
    return target


def install_it(prefix: Path, archive: Archive, **changes: Any) -> dict[str, Any]:
    fields = {"path": archive.path, "sha256": archive.sha256, **changes}
    return install(prefix.parents[1], environment_install.Archive(**fields), prefix.name, lambda _: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def packed(root: Path, tmp_path: Path) -> tuple[Path, Archive]:
    """The place of an environment that was packed and is not there any more."""
    prefix = make_environment(root)
    archive = make_archive(prefix, tmp_path / "archives")
    moved_away(prefix)
    return prefix, archive


# --- decompressing ------------------------------------------------------------------------------------


def decompress(data: bytes, step: int) -> tuple[bytes, bool]:
    decompressor = Decompressor()
    pieces = [bytes(p) for i in range(0, len(data), step) for p in decompressor.feed(data[i : i + step])]
    complete = decompressor.complete
    decompressor.close()
    return b"".join(pieces), complete


@given(
    blocks=st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.integers(1, 60_000)), max_size=4),
    step=st.integers(1, 100_000),
    frames=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_whatever_was_compressed_comes_out_in_whatever_pieces_it_arrives(
    blocks: list[tuple[bytes, int]], step: int, frames: int
) -> None:
    content = b"".join(block * times for block, times in blocks)
    data = zstandard.ZstdCompressor().compress(content) * frames
    step = max(step, len(data) // 1000 + 1)
    assert decompress(data, step) == (content * frames, True)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_content_that_just_fills_the_output_is_complete(size: int) -> None:
    data = zstandard.ZstdCompressor().compress(b"x" * size)
    assert decompress(data, 1 << 20) == (b"x" * size, True)


def test_data_that_end_too_early_are_not_complete_and_damaged_ones_are_refused() -> None:
    data = zstandard.ZstdCompressor(level=1).compress(os.urandom(100_000))
    assert decompress(data[:-5], 1000)[1] is False
    with pytest.raises(CorruptError):
        decompress(b"no zstd at all", 100)


def test_a_machine_without_the_library_is_told_which_package_has_it() -> None:
    with pytest.raises(RaytoolsError) as error:
        Decompressor("libzstd-is-not-here.so.1")
    assert "apt install libzstd1" in str(error.value)
    assert "dnf install libzstd" in str(error.value)


# --- packing and installing ---------------------------------------------------------------------------


def listing(prefix: Path) -> dict[str, tuple[int, int, str]]:
    """mode, modification time and content of everything but our notes (which gain `installed_at`)."""
    found = {}
    for path in [prefix, *prefix.rglob("*")]:
        relative = str(path.relative_to(prefix))
        if relative.startswith(".raytools"):
            continue
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[relative] = (status.st_mode, status.st_mtime_ns, content)
    return found


def test_what_is_installed_has_modes_links_and_times_to_the_nanosecond_and_byte_code(
    root: Path, tmp_path: Path
) -> None:
    prefix = make_environment(root, files={"lib/__pycache__/a.pyc": "code", "lib/ü\n x": "odd", "etc/x": ""})
    (prefix / "bin/alias").symlink_to("python")
    (prefix / "bin/dangling").symlink_to("/nowhere/at all")
    (prefix / "empty").mkdir()
    (prefix / "lib/data").chmod(0o604)
    os.utime(prefix / "lib/data", ns=(1, 1_600_000_000_123_456_789))
    note(prefix)
    before = listing(prefix)
    archive = make_archive(prefix, tmp_path / "archives")
    moved_away(prefix)
    umask = os.umask(0o077)
    try:
        answer = install_it(prefix, archive)
    finally:
        os.umask(umask)
    assert answer["changed"] is True
    assert answer["content_digest"] == archive.content_digest
    assert listing(prefix) == before
    assert manifest.compare(prefix) == []


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40)


@given(tree=st.dictionaries(st.tuples(names, names), st.tuples(st.text(), st.integers(0o400, 0o777))))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_arrives_as_it_was(tree: dict[tuple[str, str], tuple[str, int]], tmp_path: Path) -> None:
    base = tmp_path / "any"
    prefix = make_environment(base / "root")
    try:
        for number, ((folder, name), (text, mode)) in enumerate(tree.items()):
            directory = prefix / f"{number}{folder}"[:60]
            directory.mkdir()
            path = directory / f"f{name}"
            path.write_text(text, encoding="utf-8", newline="")
            path.chmod(mode | 0o400)
        note(prefix)
        archive = make_archive(prefix, base / "archives")
        former = moved_away(prefix)
        install_it(prefix, archive)
        assert manifest.compare(prefix) == []
        assert sorted(p.relative_to(prefix) for p in prefix.rglob("*")) == sorted(
            p.relative_to(former) for p in former.rglob("*")
        )
    finally:
        shutil.rmtree(base)


def test_an_archive_is_made_once_and_is_the_same_for_the_same_files(root: Path, tmp_path: Path) -> None:
    prefix = make_environment(root)
    first = make_archive(prefix, tmp_path / "one")
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.sha256
    assert first.size_bytes == first.path.stat().st_size
    again = make_archive(prefix, tmp_path / "one")
    assert (first.changed, again.changed) == (True, False)
    assert replace(again, changed=True, seconds=first.seconds) == first
    assert make_archive(prefix, tmp_path / "two").sha256 == first.sha256


def test_an_archive_that_was_cut_off_or_is_of_another_content_is_made_anew(
    root: Path, tmp_path: Path
) -> None:
    prefix = make_environment(root)
    first = make_archive(prefix, tmp_path)
    first.path.write_bytes(first.path.read_bytes()[:-1])
    assert make_archive(prefix, tmp_path).sha256 == first.sha256
    (prefix / "lib/data").write_text("another build")
    note(prefix)
    assert make_archive(prefix, tmp_path).content_digest != first.content_digest
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        ".lock", f"{ID}.json", f"{ID}.tar.zst",
    ]  # fmt: skip


def test_an_environment_that_was_changed_is_not_packed(root: Path, tmp_path: Path) -> None:
    prefix = make_environment(root)
    (prefix / "lib/data").write_text("edited!")
    with pytest.raises(EnvironmentBuildError, match=r"not as it was built.*lib/data.*env build --rebuild"):
        make_archive(prefix, tmp_path)
    assert not list(tmp_path.glob("*.zst"))


def test_an_environment_that_was_never_finished_is_not_packed(root: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentBuildError, match=r"was not built at .*\. Build it: raytools env build"):
        make_archive(root / "envs" / ID, tmp_path)


def test_the_archives_of_the_last_two_others_stay(root: Path, tmp_path: Path) -> None:
    for number in range(5):
        prefix = make_environment(root, f"small-{number:012x}")
        path = make_archive(prefix, tmp_path / "archives").path
        os.utime(path, (number, number))
    left = sorted(p.name for p in (tmp_path / "archives").glob("small*"))
    assert left == [f"small-{n:012x}.{end}" for n in (2, 3, 4) for end in ("json", "tar.zst")]


def test_an_environment_that_is_there_costs_a_look_at_its_notes(packed: tuple[Path, Archive]) -> None:
    prefix, archive = packed
    assert install_it(prefix, archive)["changed"] is True
    assert install_it(prefix, archive, path=Path("/nonexistent"))["changed"] is False


def nothing_but_the_lock(prefix: Path) -> bool:
    return [path.name for path in prefix.parent.iterdir()] == [".lock"]


def test_a_wrong_digest_installs_nothing(packed: tuple[Path, Archive]) -> None:
    prefix, archive = packed
    with pytest.raises(EnvironmentBuildError) as error:
        install_it(prefix, archive, sha256="0" * 64)
    assert f"{archive.sha256}, expected sha256 {'0' * 64}. Bring it here again" in str(error.value)
    assert nothing_but_the_lock(prefix)


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_an_archive_that_was_cut_off_installs_nothing(packed: tuple[Path, Archive], left: int) -> None:
    prefix, archive = packed
    archive.path.write_bytes(archive.path.read_bytes()[:left])
    with pytest.raises(EnvironmentBuildError, match=r"it ends in the middle.*Bring it here again"):
        install_it(prefix, archive)
    assert nothing_but_the_lock(prefix)


def test_a_damaged_archive_installs_nothing(packed: tuple[Path, Archive]) -> None:
    prefix, archive = packed
    data = bytearray(archive.path.read_bytes())
    data[len(data) // 2] ^= 255
    archive.path.write_bytes(data)
    with pytest.raises(EnvironmentBuildError, match=r"is not what was packed"):
        install_it(prefix, archive)
    assert nothing_but_the_lock(prefix)


def test_an_archive_that_is_not_here_says_how_to_bring_it(packed: tuple[Path, Archive]) -> None:
    prefix, archive = packed
    archive.path.unlink()
    with pytest.raises(
        EnvironmentBuildError, match=r"cannot read the archive .*No such file.*environment\.yml"
    ):
        install_it(prefix, archive)


def test_an_archive_of_another_place_or_environment_is_refused(
    packed: tuple[Path, Archive], tmp_path: Path
) -> None:
    prefix, archive = packed
    for place, text in (
        (tmp_path / "elsewhere/envs" / ID, r"was built at .*raytools_root"),
        (prefix.with_name("small-000000000000"), f"holds {ID}, expected small-000000000000"),
    ):
        with pytest.raises(EnvironmentBuildError, match=text):
            install_it(place, archive)
        assert not place.exists()


def test_files_that_are_not_as_the_manifest_says_are_named(root: Path, tmp_path: Path) -> None:
    prefix = make_environment(root)
    status = (prefix / "lib/data").stat()
    (prefix / "lib/data").write_text("x" * status.st_size)  # as if the disk had lost it
    os.utime(prefix / "lib/data", ns=(status.st_atime_ns, status.st_mtime_ns))
    archive = make_archive(prefix, tmp_path / "archives")
    moved_away(prefix)
    with pytest.raises(EnvironmentBuildError, match=r"1 differences .*changed lib/data.*other content"):
        install_it(prefix, archive)
    assert nothing_but_the_lock(prefix)


@pytest.mark.parametrize("state", ["no notes", "other lock", "moved here", "a file", "damaged notes"])
def test_what_is_not_this_environment_gives_way(packed: tuple[Path, Archive], state: str) -> None:
    prefix, archive = packed
    notes = prefix / ".raytools/environment.json"
    if state == "a file":
        prefix.write_text("")
    else:
        make_environment(prefix.parents[1], files={"lib/stale": ""})
        found = json.loads(notes.read_text())
        changes = {"other lock": {"lock_digest": "0" * 64}, "moved here": {"prefix": "/elsewhere"}}
        notes.write_text(json.dumps({**found, **changes.get(state, {})}))
        if state == "no notes":
            notes.unlink()
        if state == "damaged notes":
            notes.write_text("{")
    assert install_it(prefix, archive)["changed"] is True
    assert manifest.compare(prefix) == []
    assert not (prefix / "lib/stale").exists()
    assert sorted(path.name for path in prefix.parent.iterdir()) == [".lock", ID]


def test_a_python_that_does_not_start_here_leaves_things_as_they_were(root: Path, tmp_path: Path) -> None:
    script = "#!/bin/sh\necho 'GLIBC_2.99 not found' >&2; exit 1\n"
    prefix = make_environment(root, files={"bin/python": script})
    archive = make_archive(prefix, tmp_path / "archives")
    (prefix / ".raytools/environment.json").unlink()
    (prefix / "theirs").touch()
    with pytest.raises(EnvironmentBuildError, match=r"does not start on this machine: GLIBC_2\.99 not found"):
        install_it(prefix, archive)
    assert (prefix / "theirs").exists()
    assert sorted(path.name for path in prefix.parent.iterdir()) == [".lock", ID]


def test_too_little_space_is_said_before_anything_is_written(packed: tuple[Path, Archive]) -> None:
    prefix, archive = packed
    with pytest.raises(EnvironmentBuildError, match=r"free, expected 1048576 TiB for .*raytools env prune"):
        install_it(prefix, archive, unpacked_bytes=1 << 60)
    with pytest.raises(EnvironmentBuildError, match=r"more files, expected"):
        install_it(prefix, archive, files=1 << 60)
    assert nothing_but_the_lock(prefix)


def test_another_tar_than_gnus_is_named(
    packed: tuple[Path, Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, archive = packed
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(EnvironmentBuildError, match=r"tar is not there, expected GNU tar.*apt install tar"):
        install_it(prefix, archive)
    (programs / "tar").write_text("#!/bin/sh\necho 'bsdtar 3.7'\n")
    (programs / "tar").chmod(0o755)
    with pytest.raises(EnvironmentBuildError, match=r"tar is bsdtar 3\.7, expected GNU tar"):
        install_it(prefix, archive)


@pytest.mark.parametrize(
    "identifier", ["../x-ababababab12", "small", ".small-abababababab", "a/b-abababababab"]
)
def test_what_cannot_be_an_environments_name_is_refused(root: Path, identifier: str) -> None:
    with pytest.raises(EnvironmentBuildError, match="names no environment"):
        install(root, environment_install.Archive(Path("x"), ""), identifier, lambda _: None)
    with pytest.raises(EnvironmentBuildError, match="names no environment"):
        switch(root, identifier)


# --- switch, list, prune ------------------------------------------------------------------------------


def ids(number: int) -> str:
    return f"small-{number:012x}"


def test_current_is_switched_to_what_is_installed_and_to_nothing_else(root: Path) -> None:
    make_environment(root, ids(1))
    make_environment(root, ids(2))
    assert switch(root, ids(1)) == {
        "changed": True, "id": ids(1), "prefix": str(root / "envs" / ids(1)), "former": None,
    }  # fmt: skip
    assert switch(root, ids(1))["changed"] is False
    assert switch(root, ids(2))["former"] == ids(1)
    with pytest.raises(EnvironmentBuildError, match=f"is not installed .*expected one of {ids(1)}, {ids(2)}"):
        switch(root, ids(3))
    assert (root / "envs/current").resolve().name == ids(2)


def test_the_list_tells_what_each_environment_is(root: Path) -> None:
    make_environment(root, ids(1))
    (root / "envs" / ids(2)).mkdir()
    switch(root, ids(1))
    (root / "node.json").write_text(json.dumps({"environment": {"prefix": str(root / "envs" / ids(1))}}))
    first, second = list_environments(root)
    assert (first["id"], first["complete"], first["current"], first["in_node_json"]) == (
        ids(1),
        True,
        True,
        True,
    )
    assert first["installed_at"] == "2026-01-01T00:00:00Z"
    assert (second["id"], second["complete"], second["current"]) == (ids(2), False, False)
    assert overview(root)["current"] == ids(1)
    assert list_environments(root / "nothing") == []


def removed(answer: dict[str, Any]) -> list[str]:
    return [one["id"] for one in answer["removed"]]


def test_pruning_leaves_what_is_current_named_or_to_be_kept(root: Path) -> None:
    for number in range(5):
        make_environment(root, ids(number))
    shutil.rmtree(root / "envs" / ids(4) / ".raytools")  # unfinished
    (root / "envs/mine").mkdir()
    switch(root, ids(0))
    (root / "node.json").write_text(json.dumps({"environment": {"prefix": str(root / "envs" / ids(1))}}))
    planned = prune(root, [ids(2)], dry_run=True, ignore_unseen=True)
    assert removed(planned) == [ids(3), ids(4)]
    assert (root / "envs" / ids(3)).exists()
    answer = prune(root, [ids(2)], ignore_unseen=True)
    assert removed(answer) == [ids(3), ids(4)]
    assert {one["id"]: one["why"] for one in answer["kept"]} == {
        ids(0): "current",
        ids(1): "named by node.json",
        ids(2): "asked to keep it",
        "mine": "not named by raytools as an environment",
    }
    left = {path.name for path in (root / "envs").iterdir()}
    assert left == {".lock", "current", "mine", ids(0), ids(1), ids(2)}


def test_pruning_with_a_node_json_that_cannot_be_read_removes_nothing(root: Path) -> None:
    prefix = make_environment(root)
    (root / "node.json").write_text("{")
    with pytest.raises(EnvironmentBuildError, match=r"cannot tell which environment .*node\.json names"):
        prune(root, [])
    assert prefix.exists()


def test_a_process_that_cannot_be_looked_into_keeps_everything_unless_told_otherwise(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_environment(root)
    hidden = environment_use.Process(7, "alice", "python3")
    monkeypatch.setattr(
        "raytools.node.environment_inventory.find_use",
        lambda prefixes: environment_use.Use({prefix: [] for prefix in prefixes}, [hidden]),
    )
    kept = prune(root, [])["kept"]
    assert "1 processes cannot be looked into, such as python3 (process 7 of alice)" in kept[0]["why"]
    assert [one["in_use"] for one in overview(root)["environments"]] == [None]
    assert removed(prune(root, [], ignore_unseen=True)) == [ID]


def test_what_killed_installations_left_is_removed_by_the_next(packed: tuple[Path, Archive]) -> None:
    prefix, archive = packed
    for name in (f".{ID}.part-abc", f".{ID}.old-abc/x"):
        (prefix.parent / name).mkdir(parents=True)
    install_it(prefix, archive)
    assert sorted(path.name for path in prefix.parent.iterdir()) == [".lock", ID]


@given(
    count=st.integers(0, 6),
    current=st.integers(0, 7),
    declared=st.none() | st.integers(0, 7),
    former=st.integers(0, 4),
    unfinished=st.sets(st.integers(0, 6)),
)
def test_what_is_current_or_declared_stays_and_so_many_of_the_newest_others(
    count: int, current: int, declared: int | None, former: int, unfinished: set[int]
) -> None:
    environments = [
        {"id": ids(n), "complete": n not in unfinished, "current": n == current} for n in range(count)
    ]
    kept = to_keep(environments, None if declared is None else ids(declared), former)
    complete = [n for n in range(count) if n not in unfinished]
    always = {ids(n) for n in complete if n in (current, declared)}
    assert always <= set(kept)
    others = [ids(n) for n in complete if ids(n) not in always]
    assert [one for one in kept if one not in always] == others[:former]


def test_equal_content_is_told_from_different_content() -> None:
    def node(**digests: str) -> dict[str, Any]:
        return {
            "environments": [{"id": k, "complete": v != "", "content_digest": v} for k, v in digests.items()]
        }

    found = by_environment({"a": node(x="1", y="1"), "b": node(x="1", y="2"), "c": node(x="")})
    assert found["x"] == {"nodes": ["a", "b"], "content_digests": ["1"], "equal": True}
    assert found["y"]["equal"] is False


# --- former locks -------------------------------------------------------------------------------------

SPEC = EnvironmentSpec("automl", "3.11", ("conda-forge",), "local", ("libgomp",), ("optuna",))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("RAYTOOLS_CHANNELS", raising=False)
    (tmp_path / "cluster.yaml").write_text("environment: {pip: [optuna]}\n")
    return find_project(tmp_path / "cluster.yaml")


def lock_of(version: str, spec: EnvironmentSpec = SPEC, channel: str = "file:///mirror") -> Lock:
    package = {
        "name": "python", "version": "3.11.7", "build": "h1_0", "build_number": 0, "subdir": "linux-64",
        "sha256": "a" * 64, "channel": channel, "url": f"{channel}/linux-64/python-3.11.7-h1_0.conda",
    }  # fmt: skip
    pip = ({"name": "optuna", "version": version, "sha256": "b" * 64},)
    return Lock(spec.name, "3.11.7", "linux-64", (channel,), None, spec.to_json(), (package,), pip)


def put_in_force(project: Project, lock: Lock) -> None:
    """As locking does."""
    keep_former(project, SPEC, lock, SILENT)
    write_lock(state_lock_path(project, lock.name) if lock.is_local else tree_lock_path(project), lock)


def in_force(project: Project) -> Lock | None:
    return read_current_lock(project, SPEC)


def test_rolling_back_twice_is_where_it_began(project: Project) -> None:
    old, new = lock_of("1.0"), lock_of("2.0")
    put_in_force(project, old)
    put_in_force(project, new)
    result = roll_back(project, SPEC, None, SILENT)
    assert (result.changed, result.lock, result.former) == (True, old, new)
    assert in_force(project) == old
    assert roll_back(project, SPEC, None, SILENT).lock == new
    assert in_force(project) == new
    assert roll_back(project, SPEC, new.environment_id, SILENT).changed is False


def test_the_last_five_former_locks_are_kept_and_can_be_named(project: Project) -> None:
    locks = [lock_of(f"{number}.0") for number in range(8)]
    for lock in locks:
        put_in_force(project, lock)
    assert len(list(former_directory(project).iterdir())) == 5
    assert roll_back(project, SPEC, locks[3].environment_id, SILENT).lock == locks[3]
    with pytest.raises(EnvironmentBuildError, match=f"expected one of .*{locks[7].environment_id}"):
        roll_back(project, SPEC, locks[0].environment_id, SILENT)


def test_locking_the_same_again_keeps_no_former_lock(project: Project) -> None:
    put_in_force(project, lock_of("1.0"))
    put_in_force(project, lock_of("1.0"))
    with pytest.raises(EnvironmentBuildError, match="no former lock of environment automl"):
        roll_back(project, SPEC, None, SILENT)


def test_a_former_lock_of_another_declaration_names_the_keys_to_change_back(project: Project) -> None:
    put_in_force(project, lock_of("1.0"))
    changed = replace(SPEC, pip=("optuna", "six"))
    put_in_force(project, lock_of("2.0", changed))
    before = tree_lock_path(project).read_bytes()
    with pytest.raises(EnvironmentBuildError) as error:
        roll_back(project, changed, None, SILENT)
    assert str(error.value).endswith('environment:\n  pip: ["optuna"]')
    assert "nothing was changed" in str(error.value)
    assert tree_lock_path(project).read_bytes() == before
    assert roll_back(project, SPEC, None, SILENT).changed is True


@pytest.mark.parametrize("channels", [("local", "file:///mirror"), ("file:///mirror", "local")])
def test_rolling_back_over_the_border_between_the_two_places_takes_effect(
    project: Project, channels: tuple[str, str]
) -> None:
    old, new = (lock_of(f"{n}.0", channel=channel) for n, channel in enumerate(channels))
    put_in_force(project, old)
    if old.is_local:
        put_in_force(project, new)
    else:
        keep_former(project, SPEC, new, SILENT)
        tree_lock_path(project).unlink()
        write_lock(state_lock_path(project, "automl"), new)
    assert roll_back(project, SPEC, None, SILENT).lock == old
    assert in_force(project) == old
    assert roll_back(project, SPEC, None, SILENT).lock == new
    assert in_force(project) == new


# --- the node's command line --------------------------------------------------------------------------


def test_the_command_answers_with_json_and_fails_with_one_line(root: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raytools.node", "environment", *arguments, f"--root={root}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    make_environment(root)
    assert json.loads(run("switch", f"--id={ID}").stdout)["changed"] is True
    assert json.loads(run("list").stdout)["current"] == ID
    failed = run("install", "--archive=/nonexistent", "--sha256=0", "--id=other-000000000000")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.splitlines()[-1].startswith("environment: cannot read the archive /nonexistent")
