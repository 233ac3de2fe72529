"""What `make test` says at the very end of a test that failed, where a cut-off log still has it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("make_test", SCRIPTS / "test.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_test", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "AssertionError: node CPUs memory\nn1 2 4 GiB\nerror RT502 n2: the raylet is dead\nassert 2 == 0",
            "error RT502 n2: the raylet is dead",
        ),
        ("AssertionError: PLAY [Node]\nok: [n1]\nfatal: [n2]: UNREACHABLE!\n", "fatal: [n2]: UNREACHABLE!"),
        ("AssertionError: assert 1 == 2\n +  where 1 = f()", "AssertionError: assert 1 == 2"),
        ("", ""),
    ],
)
def test_the_reason_of_a_failed_test_is_the_error_that_it_shows_or_its_first_line(
    script: ModuleType, message: str, reason: str
) -> None:
    assert script._reason(message) == reason


def test_a_long_reason_is_cut(script: ModuleType) -> None:
    assert script._reason("x" * 1000) == "x" * script.REASON_CHARS
