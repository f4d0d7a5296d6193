"""Loads YAML as it is meant in descriptions of datasets: dicts, lists, str, int and None.

Plain words stay the text that is written, but whole numbers become int, and nothing, ~ and null become None. YAML 1.1 would read
the class names no, 012 and 1:30 as False, 10 and 90. Aliases, merge keys and tags are refused: a few lines of them can stand for
billions of values.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from foldfuse.errors import shown


class NotPlainYaml(Exception):
    """A YAML text holds what is refused here; the message follows the file's name."""


def load_yaml(text: str) -> Any:
    """The value in a YAML text. Raises NotPlainYaml, yaml.YAMLError, or RecursionError where it is nested too deep."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.BaseLoader):
    """Builds dicts, lists, str, int and None only."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise NotPlainYaml(
                f"line {_line(event)} refers to the anchor {shown(str(event.anchor))}. Write the value itself there."
            )
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise NotPlainYaml(f"line {_line(event)} has the tag {shown(str(tag))}. Remove it.")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        value: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise NotPlainYaml(f"line {line} has a list or mapping as a key, expected a word or a number.")
            key = self.construct_object(key_node, deep=True)
            one = self.construct_object(value_node, deep=True)
            if key == "<<":
                raise NotPlainYaml(f"line {line} has the merge key '<<'. Write the values themselves there.")
            if key in value and value[key] != one:
                raise NotPlainYaml(f"line {line} has the key {shown(key)} a second time. Keep one of them.")
            value[key] = one
        return value


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 1


def _null(loader: _Loader, node: Any) -> None:
    return None


def _int(loader: _Loader, node: Any) -> int:
    return int(node.value)


_Loader.add_implicit_resolver("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("int", re.compile(r"(-?[1-9][0-9]{0,17}|0)$"), list("-0123456789"))
_Loader.add_constructor("null", _null)
_Loader.add_constructor("int", _int)


def yaml_problem(error: yaml.YAMLError) -> str:
    """What a YAML error complains of, with line and column."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else str(problem)
