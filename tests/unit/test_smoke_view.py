"""What a smoke prints fits its screen without losing figures."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from raytools.cli import smoke_view

HEADS = ["node", "outcome", "score", "clone_loaded_on", "memory peak"]


def printed(width: int, nodes: int) -> str:
    rows = [
        [f"n{number}", "ok", f"0.98{number:02}", f"m{number}", f"1.{number} GiB of 22 GiB"]
        for number in range(nodes)
    ]
    console = Console(file=io.StringIO(), width=width)
    smoke_view._print_cells(console, "by node", HEADS, rows)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_where_there_is_room_each_node_has_a_line() -> None:
    lines = printed(width=100, nodes=3).splitlines()
    assert any("n2" in line and "0.9802" in line and "1.2 GiB of 22 GiB" in line for line in lines)


@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("width", [40, 60, 80])
def test_on_a_narrow_screen_each_node_has_a_column_and_nothing_is_cut(width: int, nodes: int) -> None:
    text = printed(width, nodes)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for number in range(nodes):
        for figure in (f"n{number}", f"0.98{number:02}", f"m{number}", f"1.{number} GiB of 22 GiB"):
            assert f" {figure} " in text
    assert text.count("by node") == text.count("outcome")


def test_a_table_without_rows_still_shows_what_it_would_tell() -> None:
    assert "by node" in printed(width=40, nodes=0)
