"""What functions do in AWS while tests drive them, held against the roles that they are deployed with.

Every call of an AWS client made in the name of a function is recorded as (action, resource). A call that its role does not
allow fails the test; after a whole run (`./psx test`), so does a grant that no test used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any, Final

import botocore.client
import botocore.exceptions
import pytest
import yaml

from local.paths import ROOT
from local.tables import read_serverless, tables

ROLES_FILE: Final = ROOT / "infra" / "functions" / "roles.yml"
STAGE: Final = "test"
Use = tuple[str, str]
"""An IAM action and what it is done to: `access`, `access/by_account`, `IpData/incoming`, `psx/test/credentials`."""

_used: dict[str, set[Use]] = {}
_current: ContextVar[str | None] = ContextVar("function", default=None)  # follows a call into its threads
_latest: list[str] = []  # except into those of S3's transfers, which know no context
_client: Any = botocore.client.BaseClient
_call_api = _client._make_api_call
_OBJECTS: Final = {"HeadObject": "GetObject", "UploadPart": "PutObject"}
_TRANSACT: Final = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "Get": "GetItem",
    "ConditionCheck": "ConditionCheckItem",
}


def uses(service: str, operation: str, params: Mapping[str, Any]) -> set[Use]:
    """The IAM actions that one API call needs. Source: Service Authorization Reference, Amazon DynamoDB and Amazon S3."""
    if service == "kms":  # by alias, or by nothing: what was encrypted names its key
        return {(f"kms:{operation}", "AccessKey")}
    if service == "s3":
        folder = str(params["Key"]).partition("/")[0]
        return {(f"s3:{_OBJECTS.get(operation, operation)}", f"IpData/{folder}")}
    if service == "sns":
        return {(f"sns:{operation}", "Alarms")}
    if service == "events":
        return {(f"events:{operation}", "rules")}
    if service != "dynamodb":
        return {(f"{service}:{operation}", str(params.get("SecretId") or "*"))}
    if operation in {"TransactWriteItems", "TransactGetItems"}:
        parts = [next(iter(item.items())) for item in params["TransactItems"]]
        return {(f"dynamodb:{_TRANSACT[kind]}", _table(part)) for kind, part in parts}
    if operation in {"BatchWriteItem", "BatchGetItem"}:
        return {(f"dynamodb:{operation}", _table({"TableName": name})) for name in params["RequestItems"]}
    return {(f"dynamodb:{operation}", _table(params))}


def _table(params: Mapping[str, Any]) -> str:
    name = str(params["TableName"]).split("-", 2)[2]
    return f"{name}/{params['IndexName']}" if "IndexName" in params else name


@functools.cache
def granted(function: str) -> frozenset[Use]:
    """What the role of a function allows on tables, secrets, keys and the bucket of address data."""
    names = {logical: p["TableName"].split("-", 2)[2] for logical, p in tables(STAGE).items()}
    text = ROLES_FILE.read_text("utf-8").replace("${sls:stage}", STAGE)
    role = yaml.safe_load(text)[function]["Properties"]
    found: set[Use] = set()
    for policy in role["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            for resource in _list(statement["Resource"]):
                found |= {(action, _resource(resource, names)) for action in _list(statement["Action"])}
    return frozenset(found)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _resource(value: Any, names: Mapping[str, str]) -> str:
    """A policy's resource as `uses` names it."""
    if isinstance(value, dict) and "Fn::GetAtt" in value:
        logical = value["Fn::GetAtt"][0]
        return names.get(logical, logical)
    if isinstance(value, dict) and "Ref" in value:
        return str(value["Ref"])
    text = str(value["Fn::Sub"]) if isinstance(value, dict) else str(value)
    if ".Arn}/" in text:
        logical, _, part = text.removeprefix("${").partition(".Arn}/")
        return f"{names.get(logical, logical)}/{part.removeprefix('index/').removesuffix('/*')}"
    if ":rule/" in text:
        return "rules"
    return text.partition(":secret:")[2].removesuffix("-??????") or text


@contextlib.contextmanager
def as_function(name: str) -> Iterator[None]:
    """Everything in the block is done in the name of a function. Raises AssertionError for what it may not do."""
    token = _current.set(name)
    _latest.append(name)
    try:
        yield
    finally:
        _current.reset(token)
        _latest.remove(name)
    beyond = _used.get(name, set()) - granted(name)
    assert not beyond, f"the role of {name} (infra/functions/roles.yml) does not allow {sorted(beyond)}"


def call_as(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """`as_function` for a call that is handed to another thread."""
    with as_function(name):
        return function(*arguments)


def _recorded(client: Any, operation: str, params: Mapping[str, Any]) -> Any:
    service = client.meta.service_model.service_name
    function = _current.get() or (_latest[-1] if service == "s3" and _latest else None)
    if function is None:
        return _call_api(client, operation, params)
    used = _used.setdefault(function, set())
    used.update(uses(service, operation, params))
    try:
        return _call_api(client, operation, params)
    except botocore.exceptions.ClientError as error:
        if service == "s3" and error.response["ResponseMetadata"]["HTTPStatusCode"] == HTTPStatus.NOT_FOUND:
            used.add(("s3:ListBucket", "IpData"))  # without it S3 says "forbidden" of what is not there
        raise


def unused() -> dict[str, list[Use]]:
    """Function -> grants on data, secrets and keys that nothing made use of."""
    data = ("dynamodb:", "kms:", "s3:", "secretsmanager:")
    found = {}
    for name in read_serverless(STAGE)["functions"]:
        rest = {use for use in granted(name) - _used.get(name, set()) if use[0].startswith(data)}
        if rest:
            found[name] = sorted(rest)
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """`./psx test` over all tests asks for this."""
    parser.addoption("--whole-roles", action="store_true", help="fail when a role grants what no test used")


def pytest_configure(config: pytest.Config) -> None:
    """Record from now on."""
    _client._make_api_call = _recorded


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the client as it was."""
    _client._make_api_call = _call_api


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker recorded."""
    for name, found in getattr(node, "workeroutput", {}).get("permissions", {}).items():
        _used.setdefault(name, set()).update((action, resource) for action, resource in found)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands over; whoever sees it all judges."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["permissions"] = {name: sorted(found) for name, found in _used.items()}
    elif session.config.getoption("--whole-roles") and unused():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the grants that nothing used."""
    if config.getoption("--whole-roles") and not hasattr(config, "workeroutput"):
        for name, rest in unused().items():
            terminalreporter.write_line(f"FAILED role of {name}: nothing used {rest}", red=True)
