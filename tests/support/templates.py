"""A CloudFormation template as it is for given parameters: conditions decided, references and substitutions filled in.

For templates of ours that are deployed as they are (`infra/`). What only AWS knows (ids, ARNs of what is made) is written
as `<Resource.Attribute>`. Leaves out functions that our templates do not use.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import yaml

NO_VALUE: Final = object()
_BRACED: Final = re.compile(r"\$\{([^}!]+)\}")
_PLAIN: Final = {"Ref", "Condition"}


class _Tagged(yaml.SafeLoader):
    """YAML whose short tags become the functions that they stand for."""


def _function(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)  # type: ignore[arg-type]
    if tag == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {tag if tag in _PLAIN else f"Fn::{tag}": value}


_Tagged.add_multi_constructor("!", _function)


@functools.cache
def read_template(path: Path) -> dict[str, Any]:
    """The template with its functions in their long form."""
    found: dict[str, Any] = yaml.load(path.read_text("utf-8"), _Tagged)
    return found


class Template:
    """One template with its parameters."""

    def __init__(self, path: Path, parameters: Mapping[str, str]) -> None:
        self._read = read_template(path)
        declared = {n: p["Default"] for n, p in self._read["Parameters"].items() if "Default" in p}
        self._parameters = {**declared, **parameters}

    def resources(self, kind: str = "") -> dict[str, dict[str, Any]]:
        """Logical id -> properties of what is made, of one type or of all."""
        return {
            name: self._value(resource.get("Properties", {}))
            for name, resource in self._read["Resources"].items()
            if (not kind or resource["Type"] == kind)
            and ("Condition" not in resource or self._holds({"Condition": resource["Condition"]}))
        }

    def decided(self) -> dict[str, Any]:
        """The template with its conditions decided and everything else as it was: for a cloud that knows few functions."""

        def choose(value: Any) -> Any:
            if isinstance(value, list):
                return [found for one in value if (found := choose(one)) is not NO_VALUE]
            if not isinstance(value, dict):
                return value
            if value == {"Ref": "AWS::NoValue"}:
                return NO_VALUE
            if set(value) == {"Fn::If"}:
                name, yes, no = value["Fn::If"]
                return choose(yes if self._holds({"Condition": name}) else no)
            found = {name: choose(one) for name, one in value.items()}
            return {name: one for name, one in found.items() if one is not NO_VALUE}

        def made(part: str) -> dict[str, Any]:
            entries = self._read.get(part, {}).items()
            return {
                name: {k: choose(v) for k, v in entry.items() if k != "Condition"}
                for name, entry in entries
                if "Condition" not in entry or self._holds({"Condition": entry["Condition"]})
            }

        kept = {k: choose(v) for k, v in self._read.items() if k not in {"Conditions", "Rules"}}
        return {**kept, "Resources": made("Resources"), "Outputs": made("Outputs")}

    def attribute(self, name: str, of: str) -> Any:
        """What stands beside the properties of a resource, such as its update policy."""
        return self._value(self._read["Resources"][name].get(of))

    def _holds(self, condition: Any) -> bool:
        ((function, given),) = condition.items()
        match function:
            case "Condition":
                return self._holds(self._read["Conditions"][given])
            case "Fn::Not":
                return not self._holds(given[0])
            case "Fn::And":
                return all(self._holds(one) for one in given)
            case "Fn::Equals":
                one, other = (self._value(value) for value in given)
                return bool(one == other)
        raise ValueError(f"condition {function} is not understood here")

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [found for one in value if (found := self._value(one)) is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1 and (next(iter(value)) == "Ref" or next(iter(value)).startswith("Fn::")):
            ((function, given),) = value.items()
            return self._call(function, given)
        found = {name: self._value(one) for name, one in value.items()}
        return {name: one for name, one in found.items() if one is not NO_VALUE}

    def _call(self, function: str, given: Any) -> Any:
        match function:
            case "Ref":
                return NO_VALUE if given == "AWS::NoValue" else self._name(given)
            case "Fn::Sub":
                return _BRACED.sub(lambda found: self._name(found[1]), given)
            case "Fn::If":
                return self._value(given[1] if self._holds({"Condition": given[0]}) else given[2])
            case "Fn::GetAtt":
                return f"<{'.'.join(given)}>"
            case "Fn::Base64":
                return self._value(given)
        return {function: self._value(given)}

    def _name(self, name: str) -> str:
        return str(self._parameters.get(name, f"<{name}>"))


def divided(value: Any, cidr: str) -> Any:
    """A template whose network is divided already: moto does not know `Fn::Cidr`."""
    if isinstance(value, list):
        return [divided(one, cidr) for one in value]
    if isinstance(value, dict) and "Fn::Cidr" in value:
        _, count, host_bits = value["Fn::Cidr"]
        parts = ip_network(cidr).subnets(new_prefix=32 - int(host_bits))
        return [str(part) for part, _ in zip(parts, range(int(count)), strict=False)]
    return {k: divided(v, cidr) for k, v in value.items()} if isinstance(value, dict) else value
