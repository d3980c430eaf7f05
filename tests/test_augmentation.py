"""Settings of views: what a method's configuration says by default holds for each field by itself."""

from functools import reduce

import pytest

from bench.records import field_paths, set_path
from bench.registry import configure, find_method, method_names


@pytest.mark.parametrize("name", method_names())
def test_to_set_one_field_leaves_the_defaults_of_the_others(name):
    defaults = configure(name, {}, "test").model_dump()
    for path, field in field_paths(find_method(name).Config).items():
        value = reduce(lambda part, key: part[key], path.split("."), defaults)
        assert configure(name, set_path({}, path, value), "test").model_dump() == defaults, path
        if "." in path:
            assert field.default == value, f"{path}: the catalogue shows another default"
