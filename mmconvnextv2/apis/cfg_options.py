"""`--cfg-options KEY=VALUE ...`, with one clear error for what is no such thing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, DictAction


class CfgOptions(DictAction):
    """mmengine's DictAction, whose errors on malformed options end as usage errors."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Parse the options; exits with code 2 and one line where they are no KEY=VALUE."""
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, RecursionError, ValueError) as error:
            given = " ".join(map(str, values or []))
            raise argparse.ArgumentError(
                self, f"expected KEY=VALUE with balanced brackets, got {given}"
            ) from error


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Change settings of a config, in place.

    Args:
        cfg: the config.
        options: values by dotted key.

    Raises:
        ValueError: a key leads through something that has no keys.
    """
    try:
        cfg.merge_from_dict(dict(options))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        names = ", ".join(options)
        raise ValueError(
            f"cfg_options {names}: a key leads through what has no such entry ({error})"
        ) from error
