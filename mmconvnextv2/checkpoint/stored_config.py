"""Reads the config that a checkpoint holds as text, as data: nothing in it is run."""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import Any


def read_settings(text: str, names: Collection[str] | None = None) -> dict[str, Any]:
    """Read the values of a dumped config, as mmengine writes it: literals and ``dict(...)``.

    Args:
        text: the config.
        names: which of its variables to read; all when None.

    Raises:
        ValueError: they are not written as plain values.
    """
    try:
        return {
            statement.targets[0].id: _value(statement.value)
            for statement in ast.parse(text).body
            if isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and (names is None or statement.targets[0].id in names)
        }
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"the checkpoint's config is not written as plain values ({error}): give the config "
            "of its run (--config)"
        ) from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict" and not node.args:
        items: dict[str, Any] = {}
        for keyword in node.keywords:
            content = _value(keyword.value)
            items |= content if keyword.arg is None else {keyword.arg: content}
        return items
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    return ast.literal_eval(node)
