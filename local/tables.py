"""The DynamoDB tables as serverless.yml declares them, ready for `create_table`. The one reader of that schema.

Leaves out what only CloudFormation knows (deletion policies, point-in-time recovery): local servers have neither.
"""

import functools
from pathlib import Path
from typing import Any, Final

import yaml

SERVERLESS_FILE: Final = Path(__file__).resolve().parent.parent / "serverless.yml"
_CREATE_TABLE_FIELDS: Final = frozenset(
    {
        "TableName",
        "BillingMode",
        "AttributeDefinitions",
        "KeySchema",
        "GlobalSecondaryIndexes",
        "StreamSpecification",
    }
)


@functools.cache
def read_serverless(stage: str) -> dict[str, Any]:
    """serverless.yml with `${sls:stage}` filled in; read once, and not to be changed."""
    text = SERVERLESS_FILE.read_text("utf-8").replace("${sls:stage}", stage)
    loaded: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    return loaded


def tables(stage: str) -> dict[str, dict[str, Any]]:
    """Logical name -> properties of every table."""
    resources = read_serverless(stage)["resources"]["Resources"].items()
    return {
        name: resource["Properties"]
        for name, resource in resources
        if isinstance(resource, dict) and resource["Type"] == "AWS::DynamoDB::Table"
    }


def table_definitions(stage: str) -> list[dict[str, Any]]:
    """Arguments of `create_table`, one dict per table."""
    found = tables(stage).values()
    return [{k: v for k, v in properties.items() if k in _CREATE_TABLE_FIELDS} for properties in found]


def time_to_live(stage: str) -> dict[str, str]:
    """Table name -> the attribute that DynamoDB expires rows by."""
    return {
        properties["TableName"]: properties["TimeToLiveSpecification"]["AttributeName"]
        for properties in tables(stage).values()
        if "TimeToLiveSpecification" in properties
    }
