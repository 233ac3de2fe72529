"""Is an environment still what was built: packages and files, by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from raytools.errors import EnvironmentBuildError
from raytools.node import manifest
from raytools.node.manifest import compare, content_digest, make_manifest

SITE = "lib/python3.11/site-packages"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def install(prefix: Path, name: str, version: str, files: dict[str, str]) -> None:
    """A Python package as pip leaves it."""
    info = f"{name}-{version}.dist-info"
    for path, text in files.items():
        write(prefix / SITE / path, text)
    write(prefix / SITE / info / "METADATA", f"Name: {name}\nVersion: {version}\n")
    lines = [f"{path},sha256=x,1" for path in (*files, f"{info}/METADATA")] + [f"{info}/RECORD,,"]
    write(prefix / SITE / info / "RECORD", "\n".join(lines) + "\n")


def note(prefix: Path, directory: Path | None = None) -> None:
    """What a build writes at its end."""
    directory = directory or manifest.own_directory(prefix)
    found = make_manifest(prefix)
    directory.mkdir(parents=True)
    manifest.write_manifest(directory, found)
    notes = {"schema": manifest.ENVIRONMENT_SCHEMA, "content_digest": content_digest(found.entries)}
    manifest.write_json(directory / manifest.ENVIRONMENT_NAME, notes)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    prefix = tmp_path / "prefix"
    install(prefix, "Some_Thing", "4.5.0", {"some_thing/__init__.py": "a = 1\n", "some_thing/data": "x" * 99})
    write(prefix / "bin/tool", "#!/bin/sh\n")
    (prefix / "bin/alias").symlink_to("tool")
    conda = {"name": "libgomp", "version": "14.2.0", "files": ["bin/tool", "bin/alias"]}
    write(prefix / "conda-meta/libgomp-14.2.0-h1_0.json", json.dumps(conda))
    note(prefix)
    return prefix


def differences(prefix: Path, *, quick: bool = False) -> list[str]:
    return [str(difference) for difference in compare(prefix, quick=quick)]


def test_what_was_just_built_has_no_differences(prefix: Path) -> None:
    assert differences(prefix) == differences(prefix, quick=True) == []


@pytest.mark.parametrize("quick", [False, True])
def test_an_edited_file_is_named_with_its_package(prefix: Path, quick: bool) -> None:
    path = prefix / SITE / "some_thing/__init__.py"
    before = path.stat()
    write(path, "a = 2\n")
    os.utime(path, (before.st_atime, before.st_mtime + 1))  # the clock of files may have ticks of some ms
    expected = f"changed {SITE}/some_thing/__init__.py (package some-thing): as built -> other content"
    assert differences(prefix, quick=quick) == [expected]


def test_an_edit_that_keeps_size_and_time_is_found_by_hashing(prefix: Path) -> None:
    path = prefix / SITE / "some_thing/__init__.py"
    before = path.stat()
    path.write_text("a = 2\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert differences(prefix, quick=True) == []  # what quick means
    assert len(differences(prefix)) == 1


def test_putting_the_content_back_makes_it_clean_whatever_the_time(prefix: Path) -> None:
    path = prefix / SITE / "some_thing/data"
    path.write_text("other")
    assert differences(prefix) == [
        f"changed {SITE}/some_thing/data (package some-thing): 99 bytes -> 5 bytes"
    ]
    path.write_text("x" * 99)
    os.utime(path, (1, 1))
    assert differences(prefix) == differences(prefix, quick=True) == []


def test_deleted_and_added_files_are_named(prefix: Path) -> None:
    (prefix / "bin/tool").unlink()
    write(prefix / "lib/stray.so", "")
    assert differences(prefix) == ["deleted bin/tool (package libgomp)", "added lib/stray.so"]


def test_another_mode_or_link_target_is_a_change(prefix: Path) -> None:
    (prefix / "bin/tool").chmod(0o700)
    (prefix / "bin/alias").unlink()
    (prefix / "bin/alias").symlink_to("/bin/sh")
    assert differences(prefix) == [
        "changed bin/alias (package libgomp): link to tool -> link to /bin/sh",
        "changed bin/tool (package libgomp): mode 644 -> mode 700",
    ]


def test_another_version_of_a_package_is_named_before_its_files(prefix: Path) -> None:
    for path in (prefix / SITE / "Some_Thing-4.5.0.dist-info").iterdir():
        path.unlink()
    (prefix / SITE / "Some_Thing-4.5.0.dist-info").rmdir()
    install(prefix, "Some_Thing", "4.4.0", {"some_thing/__init__.py": "a = 1\n", "some_thing/old.py": ""})
    found = differences(prefix)
    assert found[0] == "package some-thing: locked 4.5.0, found 4.4.0"
    assert f"added {SITE}/some_thing/old.py (package some-thing)" in found
    assert f"deleted {SITE}/Some_Thing-4.5.0.dist-info/RECORD (package some-thing)" in found


def test_packages_that_were_added_or_removed_are_named(prefix: Path) -> None:
    install(prefix, "extra", "1.0", {"extra.py": ""})
    (prefix / "conda-meta/libgomp-14.2.0-h1_0.json").unlink()
    found = differences(prefix)
    assert "package extra: locked no such package, found 1.0" in found
    assert "package libgomp: locked 14.2.0, found not installed" in found


def test_byte_code_and_conda_history_do_not_count(prefix: Path) -> None:
    write(prefix / SITE / "some_thing/__pycache__/__init__.cpython-311.pyc", "x")
    write(prefix / "conda-meta/history", "x")
    assert differences(prefix) == []


def test_a_file_that_became_a_directory_is_gone_and_the_rest_is_still_compared(prefix: Path) -> None:
    (prefix / "bin/tool").unlink()
    (prefix / "bin/tool").mkdir()
    (prefix / SITE / "some_thing/data").unlink()
    found = differences(prefix)
    assert found == [
        "deleted bin/tool (package libgomp)",
        f"deleted {SITE}/some_thing/data (package some-thing)",
    ]


def test_the_content_digest_knows_content_mode_and_link_but_not_time(prefix: Path) -> None:
    def digest() -> str:
        return content_digest(make_manifest(prefix).entries)

    first = digest()
    os.utime(prefix / "bin/tool", (1, 1))
    assert digest() == first
    (prefix / "bin/tool").chmod(0o755)
    second = digest()
    assert second != first
    (prefix / "bin/tool").write_text("#!/bin/sx\n")
    assert digest() not in (first, second)


def test_an_unfinished_environment_is_not_there(prefix: Path) -> None:
    (manifest.own_directory(prefix) / manifest.ENVIRONMENT_NAME).unlink()
    assert manifest.read_environment(prefix) is None


def test_what_was_never_built_is_an_error_that_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentBuildError, match=r"no environment was built here.*raytools env build"):
        compare(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00\xff", b'{"schema": "x", "entries": 3}'])
def test_a_damaged_manifest_is_an_error_that_names_it(prefix: Path, content: bytes) -> None:
    path = manifest.own_directory(prefix) / manifest.MANIFEST_NAME
    path.write_bytes(content)
    with pytest.raises(EnvironmentBuildError, match=r"cannot use .*manifest\.json.*--rebuild"):
        compare(prefix)


def test_notes_about_somebody_elses_environment_are_found_by_the_root(prefix: Path, tmp_path: Path) -> None:
    mine = tmp_path / "other"
    write(mine / "bin/python", "x")
    note(mine, manifest.existing_directory(tmp_path, mine))
    assert compare(mine, root=tmp_path) == []
    assert manifest.read_environment(mine, tmp_path) is not None
    assert not (mine / ".raytools").exists()
    write(mine / "bin/python", "y")
    assert [difference.name for difference in compare(mine, root=tmp_path)] == ["bin/python"]
