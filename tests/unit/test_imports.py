"""Can modules be imported: by real interpreters, some of which a module takes down with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raytools.node.imports import import_all, installed, main

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose modules can be imported."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def write(directory: Path, **sources: str) -> None:
    for name, source in sources.items():
        (directory / f"{name}.py").write_text(source + "\n")


def is_installed(directory: Path, *distributions: str) -> None:
    for name in distributions:
        metadata = directory / f"{name.replace('-', '_')}-1.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def test_what_can_be_imported_has_no_problem_and_takes_its_time(modules: Path) -> None:
    write(modules, rt_quick="", rt_slow="import time; time.sleep(0.2)")
    found = import_all(["rt_quick", "rt_slow"])
    assert list(found) == ["rt_quick", "rt_slow"]
    assert [one["problem"] for one in found.values()] == [None, None]
    assert found["rt_slow"]["s"] >= 0.2


def test_why_an_import_fails_is_said_and_the_next_is_tried(modules: Path) -> None:
    write(
        modules,
        rt_broken="raise ImportError('libGL.so.1: cannot open shared object file')",
        rt_quits="raise SystemExit('no GPU')",
        rt_good="",
    )
    found = import_all(["rt_broken", "rt_quits", "rt_missing", "rt_good"])
    assert [one["problem"] for one in found.values()] == [
        "ImportError: libGL.so.1: cannot open shared object file",
        "SystemExit: no GPU",
        "ModuleNotFoundError: No module named 'rt_missing'",
        None,
    ]


def test_a_module_that_takes_the_interpreter_down_is_named_and_the_next_is_tried(modules: Path) -> None:
    write(
        modules,
        rt_before="",
        rt_illegal="import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        rt_between="",
        rt_leaves="import os; os._exit(7)",
        rt_after="",
    )
    found = import_all(["rt_before", "rt_illegal", "rt_between", "rt_leaves", "rt_after"])
    assert {name: one["problem"] for name, one in found.items()} == {
        "rt_before": None,
        "rt_illegal": "the interpreter was ended by SIGILL",
        "rt_between": None,
        "rt_leaves": "the interpreter ended with exit code 7",
        "rt_after": None,
    }
    assert found["rt_illegal"]["s"] is None


def test_what_a_module_prints_is_no_answer_and_does_not_hide_one(modules: Path) -> None:
    write(
        modules,
        rt_half="import sys; sys.stdout.write('half a line')",
        rt_json="""print('{"begins": "rt_other"}'[:9], '[1, 2]', '7', sep='\\n')""",
        rt_bytes="import os; os.write(1, bytes([255, 254, 10])); os.write(2, bytes([255]))",
        rt_last="",
    )
    found = import_all(["rt_half", "rt_json", "rt_bytes", "rt_last"])
    assert [one["problem"] for one in found.values()] == [None] * 4


def test_an_import_that_never_ends_is_given_up_and_named(modules: Path) -> None:
    write(modules, rt_good="", rt_endless="import time; time.sleep(600)", rt_after="")
    found = import_all(["rt_good", "rt_endless", "rt_after"], limit_s=5)
    assert {name: one["problem"] for name, one in found.items()} == {
        "rt_good": None,
        "rt_endless": "not done after 5 s",
        "rt_after": None,
    }


def test_only_what_is_installed_is_tried_and_each_module_once(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_installed(modules, "scikit-learn", "xgboost", "xgboost-cpu", "autogluon.tabular")
    monkeypatch.syspath_prepend(str(modules))
    found = installed()
    assert [name for name in found if name in ("sklearn", "xgboost", "autogluon.tabular")] == [
        "sklearn", "xgboost", "autogluon.tabular",
    ]  # fmt: skip
    assert len(set(found)) == len(found)


def test_the_command_answers_json_and_takes_no_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    is_installed(tmp_path, "catboost", "lightgbm")
    write(tmp_path, catboost="", lightgbm="import rt_libgomp")
    done = subprocess.run(
        [sys.executable, "-m", "raytools.node", "imports"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}"},
        cwd="/", capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["catboost"]["problem"] is None
    assert found["lightgbm"]["problem"] == "ModuleNotFoundError: No module named 'rt_libgomp'"
    assert main(["numpy"]) == 2
    assert "no arguments" in capsys.readouterr().err
