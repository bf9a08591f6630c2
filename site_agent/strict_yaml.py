"""YAML as the people who write a policy mean it: a key that stands twice in one mapping is a fault, not a choice.

PyYAML keeps the last of two. In a policy that would be the rule that nobody sees who reads from the top.
"""

from __future__ import annotations

from collections.abc import Hashable

import yaml


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, without silent duplicates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:  # noqa: FBT001, FBT002 - PyYAML's signature
        """Refuse a key that stands twice."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value[:80]!r} stands twice"
                raise yaml.constructor.ConstructorError("in a mapping", node.start_mark, problem, key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def read_yaml(text: str) -> object:
    """The document in a text: mappings, lists and plain values.

    Raises:
        yaml.YAMLError: it is no YAML, or a key stands twice in one mapping.
    """
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of the safe loader
