"""The doctor's screen, as a tired person sees it: worst first, everything said once, the fix last."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from raytools.cli import main
from raytools.config import ClusterConfig
from raytools.doctor import gather as gathering
from raytools.doctor.checks import CHECKS
from raytools.doctor.evaluate import evaluate
from raytools.doctor.model import Check, Finding, Gathered, LockState, NodeReport, Severity, Skipped
from raytools.doctor.report import to_text

GIB = 2**30
SCREEN_LINES, SCREEN_COLUMNS = 24, 80


def cluster(count: int, dead: Collection[str] = (), waive: Collection[str] = ()) -> Gathered:
    """Nodes n1, n2, …: what the table of nodes shows of them is known."""
    waivers = [{"code": code, "reason": "test machines"} for code in waive]
    config = ClusterConfig.model_validate({"doctor": {"waive": waivers}})
    facts = {"cpu": {"usable": 4}, "memory": {"usable_bytes": 16 * GIB}, "gpus": []}
    resources = {"CPU": 4.0, "memory": 12.0 * GIB}
    nodes: list[NodeReport] = []
    seen: list[dict[str, Any]] = []
    for name in (f"n{number}" for number in range(1, count + 1)):
        inspection = {"facts": facts, "node": {"address": name}}
        nodes.append(NodeReport(name, "worker", "/opt/raytools", config, inspection=inspection))
        state = "DEAD" if name in dead else "ALIVE"
        seen.append({"address": name, "state": state, "resources_total": resources})
    return Gathered("cluster", config, tuple(nodes), ray={"nodes": seen})


def healthy(node: NodeReport, gathered: Gathered) -> Iterator[Finding]:
    yield from ()


def without(code: str, reason: str = "there is nothing to see") -> Check:
    """Cannot be made anywhere."""

    def judge(node: NodeReport, gathered: Gathered) -> Iterator[Finding]:
        raise Skipped(reason)

    return Check(code, f"title of {code}", "hosts", judge)


def sick(
    code: str,
    severity: Severity = "error",
    nodes: Collection[str] | None = None,
    message: str = "it is bad",
    fix: str = "mend it",
) -> Check:
    """Finds something on some nodes, or on all; `{node}` in a text is the node's name."""

    def judge(node: NodeReport, gathered: Gathered) -> Iterator[Finding]:
        if nodes is None or node.name in nodes:
            yield Finding(
                code, severity, node.name, message.format(node=node.name), fix.format(node=node.name)
            )

    return Check(code, f"title of {code}", "hosts", judge)


def all_checks(*others: Check) -> list[Check]:
    """Some checks, and healthy ones under all other codes that there are; sixty at least."""
    titles = {check.code: check.title for check in CHECKS}
    spare = [f"RT{group}{number}" for number in range(90, 96) for group in range(10)]
    titles |= dict.fromkeys(spare[: max(0, 60 - len(titles))], "one more")
    taken = {check.code for check in others}
    rest = [Check(code, title, "hosts", healthy) for code, title in titles.items() if code not in taken]
    return sorted((*others, *rest), key=lambda check: check.code)


def screen(gathered: Gathered, *checks: Check, verbose: bool = False) -> str:
    return to_text(evaluate(gathered, checks), 1.25, width=SCREEN_COLUMNS, verbose=verbose)


def below(text: str, start: str) -> list[str]:
    """The line that begins so, and the indented ones that belong to it."""
    lines = text.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith(start))
    end = next((n for n in range(first + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
    return [lines[first], *(line.strip() for line in lines[first + 1 : end])]


# --- findings ------------------------------------------------------------------------------------


def test_the_text_gives_check_message_fix_and_summary() -> None:
    text = screen(cluster(2), sick("RT101", nodes=["n1"]))
    assert "error   RT101 title of RT101 (n1)\n        it is bad\n        -> mend it\n" in text
    assert "error: 1 checks on 2 nodes in 1.2 s (level cluster): 1 failed\n" in text
    assert text.splitlines()[-1] == "raytools doctor --explain RT101 says more"


def test_the_worst_comes_first_and_what_is_waived_after_all_that_counts() -> None:
    checks = [
        sick("RT101", "info"),
        sick("RT203", "error"),
        sick("RT301", "warning"),
        sick("RT401", "error"),
        Check("RT501", "t", "hosts", healthy),
        without("RT601"),
    ]
    text = screen(cluster(2, waive=["RT203"]), *checks)
    lines = [line for line in text.splitlines() if "RT" in line]
    starts = [
        *("error   RT401", "warning RT301", "info    RT101", "waived  RT203"),
        *("passed  storage: RT501", "skipped RT601: there is nothing to see"),
        "raytools doctor --explain RT401 says more",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_what_is_waived_is_dim_and_gives_its_reason_for_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    report = evaluate(cluster(2, waive=["RT203"]), [sick("RT101"), sick("RT203")])
    text = to_text(report, 1.0, width=SCREEN_COLUMNS, colour=True)
    dim = [line for line in text.splitlines() if "\x1b[2m" in line and "-explain" not in line]
    assert len(dim) == 3
    assert "RT203" in dim[0]
    assert "it is bad" in dim[1]
    assert "-> waived: test machines" in dim[2]
    assert "mend it" not in "".join(dim)


def test_one_message_of_many_nodes_is_said_once() -> None:
    text = screen(cluster(20), sick("RT203", nodes=[f"n{number}" for number in range(1, 11)]))
    assert below(text, "error ") == [
        "error   RT203 title of RT203 (n1, n2, n3 and 7 more)",
        "it is bad",
        "-> mend it",
    ]


@pytest.mark.parametrize(
    ("count", "concerned", "said"),
    [
        (1, 1, "(n1)"),
        (2, 2, "(n1, n2)"),
        (3, 3, "(all 3 nodes)"),
        (9, 4, "(n1, n2, n3, n4)"),
        (9, 5, "(n1, n2, n3 and 2 more)"),
        (100, 100, "(all 100 nodes)"),
    ],
)
def test_the_nodes_of_a_check_are_named_or_counted(count: int, concerned: int, said: str) -> None:
    names = [f"n{number}" for number in range(1, concerned + 1)]
    assert below(screen(cluster(count), sick("RT203", nodes=names)), "error ")[0].endswith(said)


def test_different_messages_name_their_nodes_and_the_fixes_come_after_them_all() -> None:
    def judge(node: NodeReport, gathered: Gathered) -> Iterator[Finding]:
        if node.name == "n2":
            yield Finding("RT802", "warning", "n2", "a few files", "raise the limit")
        else:
            yield Finding("RT802", "error", node.name, "no files", "raise the limit")
        if node.name == "n3":
            yield Finding("RT802", "error", "n3", "a leak", "kill 4711")

    text = screen(cluster(4), Check("RT802", "open files", "hosts", judge))
    assert below(text, "error ") == [
        "error   RT802 open files (all 4 nodes)",
        "n1, n3, n4: no files",
        "n3: a leak",
        "n2: warning: a few files",
        "-> raise the limit",
        "-> n3: kill 4711",
    ]


def test_a_finding_of_no_node_names_none() -> None:
    check = Check(
        "RT001", "files agree", "config", of_cluster=lambda _: [Finding("RT001", "error", None, "m", "f")]
    )
    assert below(screen(cluster(3), check), "error ") == ["error   RT001 files agree", "m", "-> f"]


def test_of_very_many_messages_some_are_shown_and_the_rest_is_counted() -> None:
    text = screen(cluster(30), sick("RT701", message="{node} is away", fix="start {node}"))
    lines = below(text, "error ")
    assert lines[1:10] == [
        *(f"n{n}: n{n} is away" for n in range(1, 9)),
        "and 22 more messages; --json has all",
    ]
    assert lines[10:] == [
        *(f"-> n{n}: start n{n}" for n in range(1, 9)),
        "-> and 22 more fixes; --json has all",
    ]


def test_a_check_that_crashed_somewhere_is_not_hidden_by_its_waiver() -> None:
    def judge(node: NodeReport, gathered: Gathered) -> Iterator[Finding]:
        if node.name == "n1":
            raise KeyError("rays")
        yield Finding("RT203", "warning", node.name, "it is bad", "mend it")

    text = screen(cluster(2, waive=["RT203"]), Check("RT203", "no swap", "hosts", judge))
    assert below(text, "error ")[0] == "error   RT203 no swap (n1)"
    assert "the check itself failed" in below(text, "error ")[1]
    assert below(text, "waived ")[0] == "waived  RT203 no swap (n2)"


# --- room ----------------------------------------------------------------------------------------


SKIPPED = [without(f"RT30{number}", f"reason {number}") for number in range(1, 7)]


def test_a_healthy_cluster_fits_a_small_screen() -> None:
    checks = all_checks(*SKIPPED)
    text = screen(cluster(3), *checks)
    assert len(text.splitlines()) <= SCREEN_LINES - 1, "and the prompt"
    count = len(checks)
    said = f"ok: {count} checks on 3 nodes in 1.2 s (level cluster): {count - 6} passed, 6 skipped"
    assert text.splitlines()[-1] == said


def test_a_hundred_nodes_with_the_same_finding_fit_a_small_screen() -> None:
    message = "swap: 1 GiB is on. Runs are kept out of it, the rest of the node is not, and times differ"
    text = screen(cluster(100), *all_checks(sick("RT203", "warning", message=message), *SKIPPED))
    assert len(text.splitlines()) <= SCREEN_LINES - 1, "and the prompt"
    assert "n1 and 99 more" in text
    assert "warning RT203 title of RT203 (all 100 nodes)" in text


def test_nothing_is_wider_than_the_terminal_but_words_that_may_not_be_broken() -> None:
    path = "/opt/raytools/" + "x" * 90
    checks = [
        sick("RT101", message="much is to be said of it " * 9, fix=f"chmod 0600 {path} && run the playbook"),
        sick("RT203", "warning", message="a-word-with-hyphens " * 9, nodes=["n1", "n2"]),
        *(without(f"RT40{number}", "a long reason " * 8) for number in range(10)),
        *(Check(f"RT5{number}", "t", "hosts", healthy) for number in range(10, 40)),
    ]
    for verbose in (False, True):
        text = screen(cluster(30, dead=["n3"]), *checks, verbose=verbose)
        wide = [line.strip() for line in text.splitlines() if len(line) > SCREEN_COLUMNS]
        assert wide == [path]


def test_the_table_of_nodes_fits_too_and_keeps_long_names_whole() -> None:
    long = NodeReport(
        "worker-0001.europe-north1-a.c.some-project-of-ours.internal", "worker", "/", ClusterConfig()
    )
    gathered = cluster(2)
    text = screen(
        Gathered("cluster", gathered.config, (*gathered.nodes, long), ray=gathered.ray),
        Check("RT501", "t", "hosts", healthy),
    )
    table = text.splitlines()[: text.splitlines().index("passed  storage: RT501")]
    assert max(len(line) for line in table) <= SCREEN_COLUMNS
    assert "…" not in text
    assert "no answer" in text


# --- nodes ---------------------------------------------------------------------------------------


def test_of_few_nodes_each_is_in_the_table() -> None:
    text = screen(cluster(12), sick("RT203", nodes=["n3"]))
    assert sum(line.startswith("n") and " / " in line for line in text.splitlines()) == 12
    assert "should be" not in text


def test_of_many_nodes_only_those_with_findings_or_without_ray_are_in_the_table() -> None:
    text = screen(
        cluster(40, dead=["n30"], waive=["RT105"]),
        sick("RT203", "warning", nodes=["n3"]),
        sick("RT105", nodes=["n5"]),
    )
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("n") and " / " in line]
    assert rows == ["n30", "n3"]
    assert "not alive" in text
    assert "38 other nodes are as they should be\n" in text


def test_of_many_healthy_nodes_their_number_is_enough_unless_asked() -> None:
    check = Check("RT501", "t", "hosts", healthy)
    text = screen(cluster(100), check)
    assert text.splitlines()[0] == "100 nodes are as they should be"
    assert sum(" / " in line for line in screen(cluster(100), check, verbose=True).splitlines()) == 101


def test_no_more_rows_than_a_person_can_read() -> None:
    gathered = cluster(50)
    for number, node in enumerate(gathered.nodes):
        assert node.inspection is not None
        node.inspection["facts"]["cpu"] = {"usable": number % 25}  # type: ignore[index]
    text = screen(gathered, sick("RT101"))
    assert sum(" / " in line for line in text.splitlines()) <= 12 + 1


# --- what passed ---------------------------------------------------------------------------------


def test_what_passed_is_a_line_for_each_range() -> None:
    checks = [Check(code, "t", "hosts", healthy) for code in ("RT001", "RT101", "RT102", "RT104", "RT701")]
    text = screen(cluster(3), *checks, sick("RT105", "info"))
    assert [line for line in text.splitlines() if line.startswith("passed")] == [
        "passed  config: RT001",
        "passed  CPU:    RT101 RT102 RT104",
        "passed  Ray:    RT701",
    ]


def test_what_was_skipped_is_grouped_by_the_reason() -> None:
    text = screen(cluster(3), without("RT301"), without("RT302"), without("RT903", "no storage"))
    assert "skipped RT301, RT302: there is nothing to see\nskipped RT903: no storage\n" in text


def test_of_many_reasons_those_of_most_checks_are_shown_and_no_code_is_lost() -> None:
    checks = [without(f"RT10{number}", reason) for number, reason in enumerate("abccdd")]
    assert [line for line in screen(cluster(3), *checks).splitlines() if line.startswith("skipped")] == [
        "skipped RT102, RT103: c",
        "skipped RT104, RT105: d",
        "skipped RT100, RT101: --verbose says why",
    ]


def test_verbose_has_a_line_for_each_check() -> None:
    checks = all_checks(sick("RT203"), sick("RT401", "info"), without("RT302"))
    lines = screen(cluster(3), *checks, verbose=True).splitlines()
    for check in checks:
        assert sum(check.code in line for line in lines if "--explain" not in line) == 1
    assert "pass    RT101 CPUs: declared = physical = logical" in lines
    assert "skip    RT302 title of RT302: there is nothing to see" in lines
    assert not [line for line in lines if line.startswith(("passed", "skipped"))]


def test_verbose_says_where_a_check_that_passed_was_not_made() -> None:
    def judge(node: NodeReport, gathered: Gathered) -> Iterator[Finding]:
        if node.name == "n2":
            raise Skipped("it did not answer")
        yield from ()

    text = screen(cluster(3), Check("RT802", "open files", "hosts", judge), verbose=True)
    assert "pass    RT802 open files (not on n2: it did not answer)\n" in text


@pytest.mark.parametrize(
    ("option", "start"), [([], "passed  "), (["-v"], "pass    "), (["--verbose"], "pass    ")]
)
def test_the_command_asks_for_it(
    option: list[str],
    start: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cluster.yaml").write_text("cluster: c\n")
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("head: {hosts: {n1: {ansible_connection: local}}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gathering, "lock_state", lambda *_: LockState("automl-0123456789ab"))
    assert main(["doctor", "--level", "config", "-i", str(inventory), *option]) == 0
    assert capsys.readouterr().out.startswith(start)
