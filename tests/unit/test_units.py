"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytools.config_values import write_duration, write_size
from raytools.units import format_duration, format_size, parse_duration_s, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        (4096, 4096),
        ("2GiB", 2 * 2**30),
        ("2 gib", 2 * 2**30),
        ("2G", 2 * 2**30),
        ("512M", 512 * 2**20),
        ("1k", 1024),
        ("500MB", 500 * 10**6),
        ("1.5 KiB", 1536),
        (" 1TiB ", 2**40),
    ],
)
def test_a_size_is_read_in_binary_and_decimal_units(text, size_bytes):
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1", "1,5GB", "12XB", "1e9", "2GiB x", "٣", "nan", "inf", "9" * 5000, "9" * 400 + ".5"],
)
def test_what_is_no_size_is_refused_with_what_was_found(text):
    with pytest.raises(ValueError, match="expected a size such as 2GiB") as error:
        parse_size_bytes(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1d", 86400),
        ("90", 90),
        (2.5, 2.5),
        ("1h 5m", 3900),
        ("0s", 0),
    ],
)
def test_a_duration_is_read_in_parts(text, seconds):
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "h", "1:30", "-1s", "90s x", "1h+30m", "forever", "1 hour", "nan", "9" * 400 + "s"]
)
def test_what_is_no_duration_is_refused_with_what_was_found(text):
    with pytest.raises(ValueError, match="expected a duration such as 90s") as error:
        parse_duration_s(text)
    assert repr(text) in str(error.value)


@given(st.text())
def test_any_text_is_a_size_or_a_value_error(text):
    _a_number_or_a_message(parse_size_bytes, text, "expected a size")


@given(st.text(alphabet="0123456789.smhd \n", max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text):
    _a_number_or_a_message(parse_duration_s, text, "expected a duration")


def _a_number_or_a_message(parse, text, expected):
    try:
        result, message = parse(text), expected
    except ValueError as error:
        result, message = 0, str(error)
    assert result >= 0
    assert expected in message


@given(st.integers(0, 2**60))
def test_a_size_survives_being_written_and_read(size_bytes):
    assert parse_size_bytes(write_size(size_bytes)) == size_bytes


@given(st.integers(0, 366 * 86_400_000))
def test_a_duration_survives_being_written_and_read_to_the_millisecond(milliseconds):
    assert round(parse_duration_s(write_duration(milliseconds / 1000)) * 1000) == milliseconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3600.0, "1h"), (90.0, "90s"), (120.0, "2m"), (0.25, "250ms"), (0.0, "0s"), (86400.0, "1d")],
)
def test_a_duration_is_written_in_its_largest_whole_unit(seconds, text):
    assert write_duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (2**30, "1 GiB"), (23 * 2**30 + 2**29, "23.5 GiB")]
)
def test_a_size_is_shown_in_the_largest_fitting_unit(size_bytes, text):
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (12.34, "12.3 s"), (245, "4m05s"), (5400, "1h30m"), (3599.6, "1h00m")],
)
def test_a_duration_is_shown_as_people_read_it(seconds, text):
    assert format_duration(seconds) == text
