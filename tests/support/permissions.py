"""What functions and nodes do in AWS while tests drive them, held against the roles that they are deployed with.

Every call of an AWS client made in the name of a function, or of a node's role (`relay-node`), is recorded as (action,
resource). A call that the role does not allow fails the test; after a whole run (`./psx test`), so does a grant that no
test used. Of nodes also the kind of row is recorded: their roles name the rows that they may touch. What they do in the
cache is held in the same way, by the server itself: `cache_use.py`.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any, Final

import botocore.client
import botocore.exceptions
import pytest
import yaml

from local.paths import ROOT
from local.tables import read_serverless, tables
from shared.runtime.dynamo import AsyncDynamo, DynamoRequest
from tests.support import cache_use
from tests.support.templates import Template

NODES_FILE: Final = ROOT / "infra" / "nodes" / "nodes.yml"
NODE_ROLES: Final = ("relay-node", "gateway-node", "target-node")
ROLES_FILE: Final = ROOT / "infra" / "functions" / "roles.yml"
STAGE: Final = "test"
Use = tuple[str, str]
"""An IAM action and what it is done to: `access`, `access/by_account`, `IpData/incoming`, `psx/test/credentials`; for nodes
`access|pak#`, and in a grant a pattern of it."""

_used: dict[str, set[Use]] = {}
_told: set[tuple[str, Use]] = set()  # one test fails for it, not every later one
_current: ContextVar[str | None] = ContextVar("function", default=None)  # follows a call into its threads
_program: ContextVar[str] = ContextVar("program", default="")  # a node's, where it has several
_latest: list[str] = []  # except into those of S3's transfers, which know no context
_client: Any = botocore.client.BaseClient
_call_api = _client._make_api_call
_run_async: Any = AsyncDynamo.run
_OBJECTS: Final = {"HeadObject": "GetObject", "UploadPart": "PutObject"}
_TRANSACT: Final = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "Get": "GetItem",
    "ConditionCheck": "ConditionCheckItem",
}


def uses(service: str, operation: str, params: Mapping[str, Any], *, rows: bool = False) -> set[Use]:
    """The IAM actions that one API call needs; `rows`: with the kind of row. Source: Service Authorization Reference."""
    action = f"{service}:{operation}"
    match service:
        case "kms":  # by alias, or by nothing: what was encrypted names its key
            return {(action, "AccessKey")}
        case "s3":
            folder = str(params["Key"]).partition("/")[0]
            bucket = "Artefacts" if folder == "nodes" else "IpData"
            return {(f"s3:{_OBJECTS.get(operation, operation)}", f"{bucket}/{folder}")}
        case "sns":
            return {(action, "Alarms")}
        case "events":
            return {(action, "rules")}
        case "dynamodb":
            return _table_uses(operation, params, rows)
        case "ssm":
            return {(action, str(params["Path"]).strip("/"))}
        case "autoscaling":
            return {(action, str(params["AutoScalingGroupName"]))}
        case "cloudformation":
            return {(action, "<AWS::StackId>")}
    return {(action, str(params.get("SecretId") or "*"))}


def _table_uses(operation: str, params: Mapping[str, Any], rows: bool) -> set[Use]:
    if operation in {"TransactWriteItems", "TransactGetItems"}:
        parts = [next(iter(item.items())) for item in params["TransactItems"]]
        return {(f"dynamodb:{_TRANSACT[kind]}", _table(part, rows)) for kind, part in parts}
    if operation in {"BatchWriteItem", "BatchGetItem"}:
        return {
            (f"dynamodb:{operation}", _table({"TableName": name}, rows)) for name in params["RequestItems"]
        }
    return {(f"dynamodb:{operation}", _table(params, rows))}


def _table(params: Mapping[str, Any], rows: bool) -> str:
    name = str(params["TableName"]).split("-", 2)[2]
    named = f"{name}/{params['IndexName']}" if "IndexName" in params else name
    return f"{named}|{_kind(_leading_key(params))}" if rows else named


def _leading_key(params: Mapping[str, Any]) -> str:
    """The partition key that a call names, as IAM's `dynamodb:LeadingKeys` has it."""
    row = params.get("Key") or params.get("Item")
    if row is not None:
        return str(row["pk"]["S"])
    asked = re.match(r"\w+ = (:\w+)", params.get("KeyConditionExpression", ""))
    return str(params["ExpressionAttributeValues"][asked[1]]["S"]) if asked else "?"


def _kind(leading_key: str) -> str:
    """`pak#` of `pak#123`; rows of the mesh are apart by role."""
    kind, hash_, _ = leading_key.partition("#")
    return leading_key if kind == "node" else kind + hash_


@functools.cache
def granted(function: str) -> frozenset[Use]:
    """What the role of a function or node allows on tables, secrets, keys and the bucket of address data."""
    if function in NODE_ROLES:
        return _granted_to_node(function.removesuffix("-node"))
    names = {logical: p["TableName"].split("-", 2)[2] for logical, p in tables(STAGE).items()}
    text = ROLES_FILE.read_text("utf-8").replace("${sls:stage}", STAGE)
    role = yaml.safe_load(text)[function]["Properties"]
    found: set[Use] = set()
    for policy in role["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            if statement["Effect"] == "Deny":
                continue
            for resource in _list(statement["Resource"]):
                found |= {(action, _resource(resource, names)) for action in _list(statement["Action"])}
    return frozenset(found)


def node_statements(role: str) -> list[dict[str, Any]]:
    """Every statement of a node's role, as `nodes.yml` makes it for that role."""
    given = {"Role": role, "Stage": STAGE, "IpDataBucket": "IpData", "ArtefactBucket": "Artefacts"}
    template = Template(NODES_FILE, given)
    policies = [p for r in template.resources("AWS::IAM::Role").values() for p in r["Policies"]]
    policies += template.resources("AWS::IAM::Policy").values()
    return [statement for policy in policies for statement in policy["PolicyDocument"]["Statement"]]


def _granted_to_node(role: str) -> frozenset[Use]:
    found: set[Use] = set()
    for statement in node_statements(role):
        if statement["Effect"] == "Deny":
            continue
        rows = (
            statement.get("Condition", {}).get("ForAllValues:StringLike", {}).get("dynamodb:LeadingKeys", "*")
        )
        for resource in _list(statement["Resource"]):
            named = _node_resource(resource)
            for action in _list(statement["Action"]):
                found |= (
                    {(action, f"{named}|{row}") for row in _list(rows)}
                    if action.startswith("dynamodb:")
                    else {(action, named)}
                )
    return frozenset(found)


def _node_resource(arn: str) -> str:
    """What an ARN of a node's policy names, as `uses` does."""
    for before in (f":table/psx-{STAGE}-", ":parameter/", ":secret:", ":s3:::", ":autoScalingGroupName/"):
        if before in arn:
            return arn.partition(before)[2].removesuffix("-??????").removesuffix("/*")
    return arn


def allows(grant: Use, use: Use) -> bool:
    """Whether a grant covers a use."""
    return grant[0] == use[0] and (grant[1] == use[1] or fnmatchcase(use[1], grant[1]))


def beyond(name: str) -> list[Use]:
    """What was done in a name and its role does not allow."""
    return sorted(u for u in _used.get(name, set()) if not any(allows(g, u) for g in granted(name)))


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
    assert_allowed(name)


def assert_allowed(name: str) -> None:
    """What was done in a name so far is what its role allows. For nodes, whose work goes on in tasks of their own."""
    found = [use for use in beyond(name) if (name, use) not in _told]
    _told.update((name, use) for use in found)
    file = NODES_FILE if name in NODE_ROLES else ROLES_FILE
    assert not found, f"the role of {name} ({file.relative_to(ROOT)}) does not allow {found}"
    refused = {user: sorted(calls) for user, calls in cache_use.refused.items()}
    cache_use.refused.clear()
    assert not refused, f"users of the cache (infra/network.yml) may not: {refused}"


@contextlib.contextmanager
def as_node(role: str, program: str = "") -> Iterator[None]:
    """What begins in the block (tasks, listeners) is done in the name of a node's role: see `assert_allowed`. In the cache
    it is done as the role's user, or as that of another program of the node."""
    token, told = _current.set(f"{role}-node"), _program.set(program)
    try:
        yield
    finally:
        _program.reset(told)
        _current.reset(token)


def _cache_user() -> str | None:
    return _program.get() or cache_use.user_of(_current.get(), STAGE)


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
    used.update(uses(service, operation, params, rows=function in NODE_ROLES))
    try:
        return _call_api(client, operation, params)
    except botocore.exceptions.ClientError as error:
        if service == "s3" and error.response["ResponseMetadata"]["HTTPStatusCode"] == HTTPStatus.NOT_FOUND:
            used.add(("s3:ListBucket", "IpData"))  # without it S3 says "forbidden" of what is not there
        raise


async def _recorded_async(self: AsyncDynamo, request: DynamoRequest[Any]) -> Any:
    """The nodes' executor."""
    name = _current.get()
    if name is not None:
        operation = "".join(part.title() for part in request.operation.split("_"))
        used = _used.setdefault(name, set())
        used.update(uses("dynamodb", operation, request.params, rows=name in NODE_ROLES))
    return await _run_async(self, request)


def unused() -> dict[str, list[Use]]:
    """Function -> grants on data, secrets and keys that nothing made use of."""
    data = ("dynamodb:", "kms:", "s3:", "secretsmanager:", "ssm:Get", "autoscaling:", "cloudformation:")
    found = {}
    for name in (*read_serverless(STAGE)["functions"], *NODE_ROLES):
        used = _used.get(name, set())
        rest = {g for g in granted(name) if g[0].startswith(data) and not any(allows(g, u) for u in used)}
        if rest:
            found[name] = sorted(rest)
    return found


GATE_MISSED: Final = 8
"""Exit status, apart from that of failed tests: no second look at those excuses a role that grants too much."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`./psx test` over all tests asks for this."""
    parser.addoption("--whole-roles", action="store_true", help="fail when a role grants what no test used")


def pytest_configure(config: pytest.Config) -> None:
    """Record from now on."""
    _client._make_api_call = _recorded
    AsyncDynamo.run = _recorded_async  # type: ignore[method-assign]
    cache_use.install(_cache_user)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the client as it was."""
    _client._make_api_call = _call_api
    AsyncDynamo.run = _run_async  # type: ignore[method-assign]
    cache_use.uninstall()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker recorded."""
    output = getattr(node, "workeroutput", {})
    for name, found in output.get("permissions", {}).items():
        _used.setdefault(name, set()).update((action, resource) for action, resource in found)
    for user, found in output.get("cache", {}).items():
        cache_use.used.setdefault(user, set()).update(found)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands over; whoever sees it all judges."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["permissions"] = {name: sorted(found) for name, found in _used.items()}
        output["cache"] = {user: sorted(found) for user, found in cache_use.used.items()}
    elif session.config.getoption("--whole-roles") and (unused() or cache_use.unused()):
        session.exitstatus = GATE_MISSED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the grants that nothing used."""
    if config.getoption("--whole-roles") and not hasattr(config, "workeroutput"):
        for name, rest in unused().items():
            terminalreporter.write_line(f"FAILED role of {name}: nothing used {rest}", red=True)
        for user, grants in cache_use.unused().items():
            terminalreporter.write_line(f"FAILED cache user {user}: nothing used {grants}", red=True)
