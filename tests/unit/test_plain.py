"""Plain data: fields, defaults and comparison as of dataclasses, without their import."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest

from raytools.node.plain import Plain, as_dict, field


class Point(Plain):
    x: int
    y: int = 2
    names: list[str] = field(factory=list)


class Named(Point):
    label: str = "here"


class Holder(Plain):
    points: list[Point]
    by_name: dict[str, Point]
    pair: tuple[Point, int]


def test_fields_are_given_by_place_or_by_name() -> None:
    assert (Point(1).x, Point(1).y, Point(1).names) == (1, 2, [])
    assert Point(1, 3, ["a"]) == Point(x=1, y=3, names=["a"]) == Point(1, names=["a"], y=3)


@pytest.mark.parametrize(
    ("values", "named", "words"),
    [
        ((), {}, "Point needs x"),
        ((), {"y": 1}, "Point needs x"),
        ((1, 2, [], 4), {}, "Point takes"),
        ((1,), {"x": 2}, "Point takes"),
        ((1,), {"z": 2}, "Point takes"),
    ],
)
def test_what_is_missing_doubled_or_unknown_is_named(
    values: tuple[object, ...], named: dict[str, object], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        Point(*values, **named)  # type: ignore[arg-type]


def test_a_default_that_can_change_is_made_anew_for_each_object() -> None:
    first, second = Point(1), Point(1)
    first.names.append("mine")
    assert second.names == []
    assert Point(1).names == []


def test_a_class_has_the_fields_of_its_base_first_and_the_base_keeps_its_own() -> None:
    made = Named(1, 2, [], "there")
    assert (made.label, made.x) == ("there", 1)
    assert Named(1).label == "here"
    with pytest.raises(TypeError):
        Point(1, label="here")  # type: ignore[call-arg]


def test_equal_are_objects_of_one_class_with_equal_fields() -> None:
    assert Point(1) == Point(1)
    assert Point(1) != Point(2)
    assert Point(1) != Named(1)
    assert Point(1) != (1, 2, [])
    changed = Point(1)
    changed.y = 5
    assert changed != Point(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(changed)


def test_it_shows_its_fields_in_their_order() -> None:
    assert repr(Named(1, names=["a"])) == "Named(x=1, y=2, names=['a'], label='here')"


def test_as_dict_goes_into_lists_tuples_and_dictionaries() -> None:
    holder = Holder([Point(1)], {"a": Point(2)}, (Point(3), 4))
    found = as_dict(holder)
    assert found == {
        "points": [{"x": 1, "y": 2, "names": []}],
        "by_name": {"a": {"x": 2, "y": 2, "names": []}},
        "pair": [{"x": 3, "y": 2, "names": []}, 4],
    }
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["points", "by_name", "pair"]
    assert as_dict(5) == 5
    assert Holder([Point(**found["points"][0])], {}, (Point(1), 1)).points == holder.points


def test_the_dictionary_is_a_copy() -> None:
    point = Point(1, names=["a"])
    as_dict(point)["names"].append("b")
    assert point.names == ["a"]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_it_can_be_copied_and_pickled(again: object) -> None:
    made = Named(1, names=["a"])
    assert again(made) == made  # type: ignore[operator]
    assert again(made) is not made  # type: ignore[operator]


def test_it_costs_none_of_the_imports_that_it_avoids() -> None:
    dear = "{'dataclasses', 'inspect', 'typing'}"
    script = f"import raytools.node.plain, sys; print(*sorted({dear} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.split() == []
