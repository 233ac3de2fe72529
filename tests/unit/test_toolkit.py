"""The toolkit: packed on the controller, unpacked on a node."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raytools.node import toolkit as node_toolkit
from raytools.toolkit import PackedToolkit, pack_toolkit


@pytest.fixture
def packed(tmp_path: Path) -> PackedToolkit:
    return pack_toolkit(tmp_path / "state")


def install(packed: PackedToolkit, root: Path) -> bool:
    return node_toolkit.install(Path(packed.path), root, packed.digest, None)


def test_equal_code_is_packed_once_and_named_alike(packed: PackedToolkit, tmp_path: Path) -> None:
    before = Path(packed.path).stat().st_mtime_ns
    assert pack_toolkit(tmp_path / "state") == packed
    assert Path(packed.path).stat().st_mtime_ns == before
    elsewhere = pack_toolkit(tmp_path / "elsewhere")
    assert Path(elsewhere.path).read_bytes() == Path(packed.path).read_bytes()


def test_the_node_code_runs_from_the_archive_by_a_bare_python(packed: PackedToolkit, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "raytools.node", "toolkit", "install", "--zip", packed.path,
         "--root", str(tmp_path / "root"), "--digest", packed.digest],
        env={"PYTHONPATH": packed.path}, cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["changed"]
    assert node_toolkit.installed_digest(tmp_path / "root") == packed.digest
    shown = subprocess.run(
        [sys.executable, "-S", "-c", "import raytools.node.__main__, raytools; print(raytools.__file__)"],
        env={"PYTHONPATH": answer["path"]}, cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.startswith(answer["path"])


def test_installing_twice_is_installing_once(packed: PackedToolkit, tmp_path: Path) -> None:
    assert install(packed, tmp_path)
    assert not install(packed, tmp_path)


def test_what_was_changed_is_mended_and_what_is_not_part_of_it_removed(
    packed: PackedToolkit, tmp_path: Path
) -> None:
    install(packed, tmp_path)
    package = next((tmp_path / "toolkit").glob("*/raytools"))
    (package / "errors.py").write_text("broken")
    (package / "older.py").touch()
    assert install(packed, tmp_path)
    assert (package / "errors.py").read_text() != "broken"
    assert not (package / "older.py").exists()
    assert not install(packed, tmp_path)


def test_an_interrupted_installation_is_not_one(packed: PackedToolkit, tmp_path: Path) -> None:
    install(packed, tmp_path)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(Path(packed.path).read_bytes()[:1000])
    code = node_toolkit.main(
        ["install", "--zip", str(broken), "--root", str(tmp_path), "--digest", "another"]
    )
    assert code == 2
