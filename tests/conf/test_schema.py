"""Every knob is a typed field with one line of doc beside it."""

import ast
import inspect
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import pytest

from conf.keys import Keys, values
from conf.options import Options
from conf.schema import JobConfig
from train.data.config import DataConfig, MixturePart


def dataclasses_of(schema: Any) -> list[Any]:
    types = [kind for entry in fields(schema) for kind in (entry.type, *get_args(entry.type))]  # list[MixturePart] too
    inner = [kind for kind in types if is_dataclass(kind)]
    return [schema, *(deeper for kind in inner for deeper in dataclasses_of(kind))]


@pytest.mark.parametrize("schema", dataclasses_of(JobConfig), ids=lambda schema: schema.__name__)
def test_every_field_has_one_line_of_doc(schema: Any) -> None:
    documented = {}
    for parent in reversed(schema.__mro__[:-1]):  # inherited fields come first
        (definition,) = ast.parse(inspect.getsource(parent)).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, [*definition.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                documented[statement.target.id] = following.value.value if is_text else ""
    assert list(documented) == [entry.name for entry in fields(schema)]
    for name, doc in documented.items():
        assert isinstance(doc, str)
        assert len(doc) > 10, f"{schema.__name__}.{name} has no doc"
        assert "\n" not in doc, f"{schema.__name__}.{name} has more than one line of doc"


def test_the_keys_are_those_of_a_job() -> None:
    assert list(Keys.of(JobConfig).types) == [key for key, _ in values(JobConfig())]
    assert Keys.of(JobConfig).types["train.steps"] is int


def test_the_keys_of_a_lists_items_are_those_of_its_dataclass() -> None:
    config = JobConfig(data=DataConfig(mixture=[MixturePart(), MixturePart(name="b", weight=2.5)]))
    found = dict(values(config))
    assert found["data.mixture"] == config.data.mixture
    assert (found["data.mixture[0].name"], found["data.mixture[1].weight"]) == ("stdlib", 2.5)
    keys = Keys.of(JobConfig)
    assert all(keys.type_of(key) is not None for key in found)
    assert keys.kinds("data.mixture[7].weight") == (float,)
    assert keys.kinds("data.mixture[0].path") == (str, type(None))
    assert keys.type_of("data.mixture[0].weigth") is None
    assert keys.type_of("train.steps[0].weight") is None


def test_every_group_is_a_section() -> None:
    assert Options.find().files.keys() <= Keys.of(JobConfig).names.keys()


def test_every_option_has_one_line_of_doc() -> None:
    for files in Options.find().files.values():
        for path in files.values():
            first, second = path.read_text().splitlines()[:2]
            assert first.startswith("# "), path
            assert not second.startswith("#"), path
