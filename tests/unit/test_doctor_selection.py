"""Which checks the doctor makes, whether waivers are still used, and waiting for a healthy cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raytools.cli import doctor as command
from raytools.cli import main
from raytools.config import ClusterConfig
from raytools.doctor import gather as gathering
from raytools.doctor.checks import CHECKS
from raytools.doctor.checks.configuration import waivers_are_used
from raytools.doctor.evaluate import evaluate
from raytools.doctor.explanations import EXPLANATIONS
from raytools.doctor.model import Check, Finding, Gathered, LockState, NodeReport, Skipped
from raytools.doctor.selection import select
from raytools.errors import RaytoolsError

# --- selection -----------------------------------------------------------------------------------


def codes(*arguments: str, level: str = "prove") -> list[str]:
    return [check.code for check in select(level, *arguments)]  # type: ignore[arg-type]


def test_without_a_wish_all_checks_of_the_level_are_made() -> None:
    assert codes() == [check.code for check in CHECKS]
    assert codes(level="config") == [check.code for check in CHECKS if check.level == "config"]


@pytest.mark.parametrize("only", ["RT7", "rt7xx", "RT7XX", "RT701,RT702, RT703 RT704,rt705 rt706"])
def test_a_range_stands_for_all_its_codes_however_it_is_written(only: str) -> None:
    assert set(codes(only)) == {check.code for check in CHECKS if check.code.startswith("RT7")}


def test_what_is_skipped_is_taken_from_what_is_wanted() -> None:
    assert codes("RT1xx", "RT102 RT104,RT105, RT106 RT107,RT108") == ["RT101", "RT103"]
    assert "RT801" not in codes("", "RT8")


@pytest.mark.parametrize("word", ["R", "RT", "xx", "7", "RT999", "RT7yy", "foo"])
@pytest.mark.parametrize("option", ["--only", "--skip"])
def test_a_code_that_is_none_is_named_with_those_that_are(word: str, option: str) -> None:
    arguments = (word,) if option == "--only" else ("", word)
    with pytest.raises(RaytoolsError, match=f"{option} found '{word}'") as refused:
        codes(*arguments)
    assert "RT101" in str(refused.value)


def test_a_check_beyond_the_level_says_which_level_it_needs() -> None:
    with pytest.raises(RaytoolsError, match="--level prove"):
        codes("RT103", level="cluster")


def test_a_selection_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(RaytoolsError, match="leaves no check"):
        codes("RT101", "RT1")


def test_the_list_names_every_check_and_makes_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [check.code for check in CHECKS]
    assert main(["doctor", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "code": CHECKS[0].code,
        "title": CHECKS[0].title,
        "level": CHECKS[0].level,
    }


# --- waivers -------------------------------------------------------------------------------------

WAIVERS = Check("RT003", "every waiver is used", "config", of_results=waivers_are_used)


def warned(node: NodeReport, _: Gathered) -> Iterator[Finding]:
    yield Finding("RT203", "warning", node.name, "swap is on", "swapoff -a")


def silent(node: NodeReport, _: Gathered) -> Iterator[Finding]:
    yield from ()


def silent_on_one_node(node: NodeReport, _: Gathered) -> Iterator[Finding]:
    if node.name == "n2":
        raise Skipped("the node did not answer")
    yield from ()


@pytest.mark.parametrize(
    ("judge", "level", "unused"),
    [
        (warned, "hosts", False),
        (silent, "hosts", True),
        (silent_on_one_node, "hosts", False),
        (silent, "config", False),
    ],
)
def test_a_waiver_is_unused_only_where_the_check_was_made_everywhere(
    judge: object, level: str, unused: bool
) -> None:
    config = ClusterConfig.model_validate({"doctor": {"waive": [{"code": "RT203", "reason": "old VMs"}]}})
    nodes = tuple(NodeReport(name, "worker", "/r", config) for name in ("n1", "n2"))
    swap = Check("RT203", "no swap", "hosts", per_node=judge)  # type: ignore[arg-type]
    report = evaluate(Gathered(level, config, nodes), (WAIVERS, swap))  # type: ignore[arg-type]
    found = [one for one in report.findings if one.code == "RT003"]
    assert [one.message for one in found] == (
        ["doctor.waive: RT203 is accepted (old VMs), and nothing of it is found"] if unused else []
    )
    assert [check.code for check in report.checks] == (["RT003", "RT203"] if level == "hosts" else ["RT003"])


COMES_AND_GOES = re.findall(r"RT\d+", EXPLANATIONS["RT003"].meaning.partition("comes and goes")[2])


def test_the_page_names_what_comes_and_goes() -> None:
    assert [check.code for check in CHECKS if check.comes_and_goes] == COMES_AND_GOES


@pytest.mark.parametrize("code", COMES_AND_GOES)
def test_a_waiver_of_what_comes_and_goes_may_wait_for_it(code: str) -> None:
    config = ClusterConfig.model_validate({"doctor": {"waive": [{"code": code, "reason": "shared"}]}})
    (check,) = (one for one in CHECKS if one.code == code)
    quiet = replace(check, per_node=silent, of_cluster=None)
    nodes = (NodeReport("n1", "worker", "/r", config),)
    report = evaluate(Gathered("prove", config, nodes), (WAIVERS, quiet))
    assert report.findings == ()


# --- waiting -------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[LockState]:
    """What the next looks at the lock find, one each; the last stays."""
    (tmp_path / "cluster.yaml").write_text("cluster: c\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_PAUSE_S", 0.01)
    found: list[LockState] = []
    monkeypatch.setattr(gathering, "lock_state", lambda *_: found.pop(0) if len(found) > 1 else found[0])
    return found


BAD, GOOD = LockState(None, problem="it is half written"), LockState("automl-0123456789ab")


def test_it_waits_until_nothing_is_left_and_says_for_what(
    looks: list[LockState], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    looks += [BAD, BAD, GOOD]
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("head: {hosts: {n1: {ansible_connection: local}}}\n")
    assert main(["doctor", "--level", "config", "--wait", "60s", "-i", str(inventory)]) == 0
    said = capsys.readouterr()
    assert said.err.count("RT001 the lock cannot be used: it is half written") == 2
    assert said.out.splitlines()[-1].startswith("ok:")


def test_a_wait_that_is_over_tells_what_is_left(
    looks: list[LockState], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    looks += [BAD]
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("head: {hosts: {n1: {ansible_connection: local}}}\n")
    assert main(["doctor", "--level", "config", "--wait", "1ms", "-i", str(inventory)]) == 1
    said = capsys.readouterr().out
    assert "error   RT001 " in said
    assert "        the lock cannot be used: it is half written\n        -> " in said


def test_a_wait_that_is_no_duration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--wait", "soon"]) == 2
    assert "--wait: found 'soon', expected a duration" in capsys.readouterr().err


def test_what_can_be_mended_is_not_waited_for(
    looks: list[LockState],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks += [BAD, BAD, GOOD]
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("head: {hosts: {n1: {ansible_connection: local}}}\n")
    left_to_look: list[int] = []
    monkeypatch.setattr(command, "_mend", lambda *_: left_to_look.append(len(looks)) or True)
    assert main(["doctor", "--level", "config", "--fix", "--wait", "60s", "-i", str(inventory)]) == 0
    assert left_to_look == [2], "it looked once, and mended"
    assert capsys.readouterr().err.count("it is half written") == 1  # then it waited
