"""Records: what a wrong configuration says."""

import pytest
from pydantic import Field

from bench.errors import BadInput, UnknownName
from bench.records import Record, canonical_json, deep_merge, digest, field_paths, parse, read_toml, set_path


class Inner(Record):
    low: float = Field(0.5, gt=0, le=1)
    high: float = 2.0


class Outer(Record):
    name: str
    gamma: Inner = Inner()
    count: int = Field(3, ge=1)


def test_a_wrong_key_names_the_file_the_key_and_the_nearest_one():
    with pytest.raises(BadInput) as error:
        parse(Outer, {"name": "a", "gamma": {"hihg": 3}}, "sweeps/x.toml")
    assert str(error.value) == "sweeps/x.toml: unknown key 'gamma.hihg'; did you mean 'high'?"


def test_every_problem_is_one_line():
    with pytest.raises(BadInput) as error:
        parse(Outer, {"count": 0, "gamma": {"low": "much"}}, "x.toml")
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert lines[0] == "x.toml: key 'name' is missing"
    assert "gamma.low" in lines[1]
    assert "'much'" in lines[1]
    assert "count" in lines[2]
    assert "(given: 0)" in lines[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite(value):
    with pytest.raises(BadInput, match=r"gamma\.high"):
        parse(Outer, {"name": "a", "gamma": {"high": value}}, "x")


def test_canonical_json_does_not_depend_on_order():
    assert canonical_json({"b": 1, "a": [1.0, "é"]}) == '{"a":[1.0,"é"],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) != digest({"a": 2, "b": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_merging_lays_tables_upon_tables_and_replaces_lists():
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 2}
    assert deep_merge(base, {"a": {"y": [3]}, "c": 4}) == {"a": {"x": 1, "y": [3]}, "b": 2, "c": 4}
    assert set_path(base, "a.z.w", 5)["a"] == {"x": 1, "y": [1, 2], "z": {"w": 5}}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 2}


def test_field_paths_reach_into_nested_records():
    assert list(field_paths(Outer)) == ["name", "gamma.low", "gamma.high", "count"]


def test_a_broken_toml_file_is_named(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("a = [1,\n")
    with pytest.raises(BadInput, match=r"bad\.toml: not valid TOML"):
        read_toml(path)
    with pytest.raises(BadInput, match=r"none\.toml: cannot be read"):
        read_toml(tmp_path / "none.toml")


def test_a_wrong_name_suggests_the_nearest_or_lists_all():
    assert str(UnknownName("method", "simclar", ["simclr", "jigsaw"])) == (
        "no method is named 'simclar'; did you mean 'simclr'?"
    )
    assert str(UnknownName("method", "xyz", ["b", "a"])).endswith("there are: a, b")
