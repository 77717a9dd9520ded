"""The keys that a job has, as dotted names, and what each takes: read from the dataclasses themselves."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_origin

ITEM = re.compile(r"(?P<list>.+)\[\d*\](?:\.(?P<name>[^.]+))?")
"""`data.mixture[0].weight`; `data.mixture[]` where it is not known which."""


@dataclass(frozen=True)
class Keys:
    """Every key below one dataclass."""

    types: dict[str, Any]
    """`train.steps` → int: the keys that take a value."""
    names: dict[str, list[str]]
    """`train` → [`steps`, …]: the keys that hold others, and their names."""
    items: dict[str, Any]
    """`data.mixture` → MixturePart: the keys that hold a list of dataclasses, and which."""

    @classmethod
    def of(cls, schema: Any) -> "Keys":
        """The keys of the dataclass `schema`, and of those inside it."""
        keys = cls({}, {}, {})

        def walk(inner: Any, prefix: str) -> None:
            for entry in fields(inner):
                key = prefix + entry.name
                if is_dataclass(entry.type):
                    keys.names[key] = [field.name for field in fields(entry.type)]
                    walk(entry.type, key + ".")
                else:
                    keys.types[key] = entry.type
                    if get_origin(entry.type) is list and is_dataclass(get_args(entry.type)[0]):
                        keys.items[key] = get_args(entry.type)[0]

        walk(schema, "")
        return keys

    def type_of(self, key: str) -> Any:
        """What `key` takes, also inside a list (`data.mixture[0].weight`); None if there is no such key."""
        if key in self.types or not (item := ITEM.fullmatch(key)):
            return self.types.get(key)
        kind = self.items.get(item["list"])
        if kind is None or item["name"] is None:
            return kind
        return next((entry.type for entry in fields(kind) if entry.name == item["name"]), None)

    def kinds(self, key: str) -> tuple[Any, ...]:
        """The types that a value of `key` can have; `Optional[int]` is two."""
        kind = self.type_of(key)
        return (kind,) if get_origin(kind) is list else get_args(kind) or (kind,)

    def expected(self, key: str) -> str:
        """What `key` wants, to stand after "set it to"."""
        return _listed([word for kind in self.kinds(key) for word in _value_names(kind)])

    def unknown(self, key: str, where: str = "") -> str:
        """Say that there is no `key` (which stood `where`: " in a.yaml"), and which one may have been meant."""
        section, _, name = key.rpartition(".")
        known_beside = self._names_in(section)
        beside = [f"{section}.{close}" for close in difflib.get_close_matches(name, known_beside, n=1)]
        elsewhere = [known for known in self.types if known.rpartition(".")[2] == name]
        similar = difflib.get_close_matches(key, [*self.types, *self.names], n=1, cutoff=0.7)
        if meant := beside or (elsewhere if "[" not in section else []) or (similar if not known_beside else []):
            advice = f"did you mean {_listed(meant)}?"
        elif known_beside:
            advice = f"{section} has {', '.join(known_beside)}"
        else:
            advice = "--cfg job prints them all"
        return f"unknown key {key!r}{where}; {advice}"

    def section(self, key: str) -> str:
        """Say that `key` holds others."""
        return f"{key} is a group of keys; set one of them: {', '.join(f'{key}.{name}' for name in self.names[key])}"

    def _names_in(self, section: str) -> list[str]:
        item = ITEM.fullmatch(section)
        if item and item["name"] is None and item["list"] in self.items:
            return [entry.name for entry in fields(self.items[item["list"]])]
        return self.names.get(section, [])


def values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below the dataclass object `config`, with its value; a list's own key, then those of its items."""
    for entry in fields(config):
        key, value = prefix + entry.name, getattr(config, entry.name)
        if is_dataclass(value):
            yield from values(value, f"{key}.")
            continue
        yield key, value
        for index, item in enumerate(value if isinstance(value, list) else []):
            if is_dataclass(item):
                yield from values(item, f"{key}[{index}].")


def _value_names(kind: Any) -> list[str]:
    if get_origin(kind) is list:
        return [f"a list, [{{KEY: VALUE, …}}, …], with the keys {_field_names(get_args(kind)[0])}"]
    if is_dataclass(kind):
        return [f"{{KEY: VALUE, …}}, with the keys {_field_names(kind)}"]
    if issubclass(kind, Enum):
        return [member.name for member in kind]
    names = {int: ["a whole number"], float: ["a number"], bool: ["true", "false"], str: ["a text"]}
    return names.get(kind, ["null"])


def _field_names(kind: Any) -> str:
    return ", ".join(entry.name for entry in fields(kind))


def _listed(words: list[str]) -> str:
    """a, b or c."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
