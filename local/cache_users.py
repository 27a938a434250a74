"""The users of the cache as `infra/network.yml` declares them, for every server on this machine. The one reader of them.

Leaves out how the deployed cache learns of passwords (the template resolves them from Secrets Manager).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import yaml

from local.paths import ROOT

NETWORK_FILE: Final = ROOT / "infra" / "network.yml"
USER: Final = "AWS::ElastiCache::User"
EVERYTHING: Final = "on ~* &* +@all"


class _Plain(yaml.CSafeLoader):
    """YAML that reads past CloudFormation's functions: access strings use none."""


_Plain.add_multi_constructor("!", lambda _loader, _tag, _node: None)


@functools.cache
def access_strings() -> Mapping[str, str]:
    """User -> what it may do, in the words of Redis's access lists."""
    resources: Mapping[str, Any] = _Plain(NETWORK_FILE.read_text("utf-8")).get_single_data()["Resources"]
    users = (r["Properties"] for r in resources.values() if r["Type"] == USER)
    return {user["UserName"]: user["AccessString"] for user in users}


def access_list(passwords: Mapping[str, str], operator: tuple[str, str] | None = None) -> str:
    """An `aclfile` with these users, and one who may do everything: a named operator, else whoever names nobody.

    Source: the documentation of Redis, "ACL", "Use an external ACL file".
    """
    lines = [f"user {name} {_digest(passwords[name])} {access}" for name, access in access_strings().items()]
    if operator is None:
        return "\n".join([*lines, f"user default nopass {EVERYTHING}", ""])
    name, password = operator
    return "\n".join([*lines, "user default off", f"user {name} {_digest(password)} {EVERYTHING}", ""])


def _digest(password: str) -> str:
    return "#" + hashlib.sha256(password.encode()).hexdigest()
