"""Writing YAML that `read_yaml` reads back as it was, and that people can read."""

from __future__ import annotations

import yaml

from swatool.recipe.yaml_text import is_plain_text

__all__ = ["write_yaml"]


def write_yaml(value: object) -> str:
    """Return plain values as YAML, keys in their order, what holds only single values in one line."""
    written = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
    assert isinstance(written, str)
    return written


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - what aliases name is written again
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML knows what YAML 1.1 takes for no text; what 1.2 does, such as 1e-3, must be quoted, too.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain_text(text) else "'")


_Dumper.add_representer(str, _text)
