"""Tables: an own one is checked before anything starts, a named one comes from the cache or says why not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from raytools.errors import RaytoolsError
from raytools.workloads import tables
from raytools.workloads.parquet_footer import ParquetFooter, read_footer
from tests.unit.parquet_file import PARQUET

ROWS = "".join(f"{number},{number % 2}\n" for number in range(30))


def own_table(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_an_own_table_travels_byte_for_byte(tmp_path: Path) -> None:
    content = f'x,"label, quoted"\n{ROWS}'
    path = own_table(tmp_path / "own.csv", content)
    assert tables.read_own_table(path, "label, quoted") == content.encode()


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = own_table(tmp_path / "own.csv", b"\xef\xbb\xbf" + f"x,y\n{ROWS}".encode())
    tables.read_own_table(path, "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "own.csv is empty"),
        ("x,y\n", "has a header and no rows, expected at least 20 rows"),
        ("x,y\n1,2\n3,4\n", "has a header and 2 rows, expected at least 20 rows"),
        (f"a,b\n{ROWS}", "has no column 'y', expected one of its columns: a, b"),
        (b"\x00\xff\xfe" * 100, "is not a csv file"),
    ],
)
def test_a_table_that_cannot_be_used_says_what_is_wrong(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(RaytoolsError) as error:
        tables.read_own_table(own_table(tmp_path / "own.csv", content), "y")
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_an_own_parquet_file_travels_byte_for_byte(tmp_path: Path) -> None:
    path = own_table(tmp_path / "own.parquet", PARQUET)
    assert tables.read_own_parquet(path, "label") == PARQUET
    assert read_footer(PARQUET) == ParquetFooter(("x", "label"), 30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PARQUET, "has no column 'y', expected one of its columns: x, label"),
        (PARQUET[:-1], "is not a Parquet file (it does not begin and end with PAR1)"),
        (b"x,y\n1,2\n", "is not a Parquet file"),
        (PARQUET[:200] + PARQUET[-8:], "is not a Parquet file (its footer is longer than the file)"),
        (PARQUET[:40] + bytes(len(PARQUET) - 48) + PARQUET[-8:], "is not a Parquet file (its footer cannot"),
        (PARQUET.replace(b"\x19<5\x00", b"\x19\xff5\x00"), "is not a Parquet file (its footer cannot"),
        (b"", "is not a Parquet file"),
    ],
)
def test_a_parquet_file_that_cannot_be_used_says_what_is_wrong(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(RaytoolsError) as error:
        tables.read_own_parquet(own_table(tmp_path / "own.parquet", content), "y")
    assert message in str(error.value)


def test_no_damage_to_a_footer_ends_in_another_error() -> None:
    """Every byte of it, changed in two ways, and every length it may be cut to."""
    start = len(PARQUET) - 8 - int.from_bytes(PARQUET[-8:-4], "little")
    damaged = [
        PARQUET[:place] + bytes([PARQUET[place] ^ change]) + PARQUET[place + 1 :]
        for place in range(start, len(PARQUET))
        for change in (0x0F, 0xFF)
    ]
    for content in damaged + [PARQUET[:length] + PARQUET[-8:] for length in range(4, len(PARQUET) - 8)]:
        try:
            read_footer(content)
        except ValueError:
            continue


def test_a_parquet_file_given_as_csv_is_told_its_option(tmp_path: Path) -> None:
    with pytest.raises(RaytoolsError, match=r"is a Parquet file, expected a csv file.* --parquet "):
        tables.read_own_table(own_table(tmp_path / "own.csv", PARQUET), "label")


def test_every_table_of_ours_has_a_band_for_its_own_label_only() -> None:
    for name, dataset in tables.DATASETS.items():
        band = tables.score_band(name, dataset.label)
        assert band is not None
        assert 0 < band[0] < band[1] <= 1
        assert tables.score_band(name, "another") is None
    assert tables.score_band("own.csv", "price") is None


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RaytoolsError, match=r"gone\.csv does not exist"):
        tables.read_own_table(tmp_path / "gone.csv", "y")


def test_an_unknown_dataset_is_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(RaytoolsError, match="no dataset 'rubies', expected one of diamonds, breast_cancer"):
        tables.fetch("rubies", tmp_path)


def test_a_dataset_that_nodes_have_anyway_needs_no_bytes(tmp_path: Path) -> None:
    assert tables.fetch("breast_cancer", tmp_path) is None


def test_a_cached_table_is_taken_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"carat,price\n1,2\n"
    source = tables.WheelTable(
        "nothing==0", "nothing.whl", "0" * 64, "x", hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setitem(tables.DATASETS, "gems", tables.Dataset("price", 1, "gems", source))
    (tmp_path / "gems.csv").write_bytes(content)
    assert tables.fetch("gems", tmp_path) == content


def test_a_cached_table_that_was_changed_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # nor is it downloaded here: what matters is that it is asked for
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (tmp_path / "diamonds.csv").write_bytes(b"carat,price\n1,2\n")
    with pytest.raises(RaytoolsError, match="dataset diamonds cannot be fetched"):
        tables.fetch("diamonds", tmp_path)


def test_pips_trouble_is_told_with_what_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RaytoolsError) as error:
        tables.fetch("diamonds", tmp_path / "data")
    assert "No matching distribution found for plotnine" in str(error.value) or "ERROR" in str(error.value)
    assert "--dataset breast_cancer" in str(error.value)
    assert not (tmp_path / "data").exists()
