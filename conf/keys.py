"""The keys that a job has, as dotted names, and what each takes: read from the dataclasses themselves."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, get_args


@dataclass(frozen=True)
class Keys:
    """Every key below one dataclass."""

    types: dict[str, Any]
    """`train.steps` → int: the keys that take a value."""
    names: dict[str, list[str]]
    """`train` → [`steps`, …]: the keys that hold others, and their names."""

    @classmethod
    def of(cls, schema: Any) -> "Keys":
        """The keys of the dataclass `schema`, and of those inside it."""
        keys = cls({}, {})

        def walk(inner: Any, prefix: str) -> None:
            for entry in fields(inner):
                key = prefix + entry.name
                if is_dataclass(entry.type):
                    keys.names[key] = [field.name for field in fields(entry.type)]
                    walk(entry.type, key + ".")
                else:
                    keys.types[key] = entry.type

        walk(schema, "")
        return keys

    def kinds(self, key: str) -> tuple[type, ...]:
        """The types that a value of `key` can have; `Optional[int]` is two."""
        return get_args(self.types[key]) or (self.types[key],)

    def expected(self, key: str) -> str:
        """What `key` wants, to stand after "set it to"."""
        return _listed([word for kind in self.kinds(key) for word in _value_names(kind)])

    def unknown(self, key: str, where: str = "") -> str:
        """Say that there is no `key` (which stood `where`: " in a.yaml"), and which one may have been meant."""
        section, _, name = key.rpartition(".")
        beside = [f"{section}.{close}" for close in difflib.get_close_matches(name, self.names.get(section, []), n=1)]
        elsewhere = [known for known in self.types if known.rpartition(".")[2] == name]
        similar = difflib.get_close_matches(key, [*self.types, *self.names], n=1, cutoff=0.7)
        if meant := beside or elsewhere or (similar if section not in self.names else []):
            advice = f"did you mean {_listed(meant)}?"
        elif section in self.names:
            advice = f"{section} has {', '.join(self.names[section])}"
        else:
            advice = "--cfg job prints them all"
        return f"unknown key {key!r}{where}; {advice}"

    def section(self, key: str) -> str:
        """Say that `key` holds others."""
        return f"{key} is a group of keys; set one of them: {', '.join(f'{key}.{name}' for name in self.names[key])}"


def values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below the dataclass object `config`, with its value."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from values(value, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, value


def _value_names(kind: type) -> list[str]:
    if issubclass(kind, Enum):
        return [member.name for member in kind]
    names = {int: ["a whole number"], float: ["a number"], bool: ["true", "false"], str: ["a text"]}
    return names.get(kind, ["null"])


def _listed(words: list[str]) -> str:
    """a, b or c."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
