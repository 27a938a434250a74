"""The DynamoDB tables as serverless.yml declares them, ready for `create_table`. The one reader of that schema.

Leaves out what only CloudFormation knows (deletion policies, point-in-time recovery): local servers have neither.
"""

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


def read_serverless(stage: str) -> dict[str, Any]:
    """serverless.yml with `${sls:stage}` filled in."""
    text = SERVERLESS_FILE.read_text("utf-8").replace("${sls:stage}", stage)
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def table_definitions(stage: str) -> list[dict[str, Any]]:
    """Arguments of `create_table`, one dict per table."""
    resources = read_serverless(stage)["resources"]["Resources"].values()
    return [
        {k: v for k, v in resource["Properties"].items() if k in _CREATE_TABLE_FIELDS}
        for resource in resources
        if resource["Type"] == "AWS::DynamoDB::Table"
    ]


def time_to_live(stage: str) -> dict[str, str]:
    """Table name -> the attribute that DynamoDB expires rows by."""
    resources = read_serverless(stage)["resources"]["Resources"].values()
    return {
        resource["Properties"]["TableName"]: resource["Properties"]["TimeToLiveSpecification"][
            "AttributeName"
        ]
        for resource in resources
        if resource["Type"] == "AWS::DynamoDB::Table" and "TimeToLiveSpecification" in resource["Properties"]
    }
