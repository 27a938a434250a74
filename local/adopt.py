"""`./psx adopt STAGE`: make the stack of a stage that was removed anew, around the tables, keys and bucket that stayed.

A deployment makes what its template names, and what exists already cannot be made. CloudFormation imports instead, in a
change set that may hold nothing else: the part of the packaged template that is retained. The next `serverless deploy`
adds the rest. Without `--write` it only says what it would import. Source: CloudFormation user guide, "Import AWS resources
into a CloudFormation stack".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.exceptions

from local.paths import ROOT

PACKAGED: Final = ROOT / ".serverless" / "cloudformation-template-update-stack.json"
CHANGE_SET: Final = "adopt"
POLL_S: Final = 3
POLLS_MAX: Final = 120
TABLE: Final = "AWS::DynamoDB::Table"
KEY: Final = "AWS::KMS::Key"
BUCKET: Final = "AWS::S3::Bucket"
IDENTIFIED_BY: Final = {TABLE: "TableName", KEY: "KeyId", BUCKET: "BucketName"}


class AdoptRefused(Exception):
    """What was found is not what the stack had; the message names it."""


def retained(template: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Logical id -> what outlives the stack."""
    return {
        name: resource
        for name, resource in template["Resources"].items()
        if str(resource.get("DeletionPolicy")).startswith("Retain") and resource["Type"] in IDENTIFIED_BY
    }


def import_template(template: Mapping[str, Any]) -> dict[str, Any]:
    """The template of the import: what is imported, and nothing beside it."""
    version = template.get("AWSTemplateFormatVersion", "2010-09-09")
    return {"AWSTemplateFormatVersion": version, "Resources": retained(template)}


def identifiers(template: Mapping[str, Any], stage: str, clients: Any = boto3.client) -> list[dict[str, Any]]:
    """What stands for each retained resource, as CloudFormation asks for it. Raises AdoptRefused."""
    keys = _keys_by_description(clients("kms"))
    account, region = _here(clients("sts"))
    found = []
    for name, resource in retained(template).items():
        kind, properties = resource["Type"], resource["Properties"]
        if kind == KEY:
            value = _only_key(keys, _text(properties["Description"], stage, account, region))
        else:
            value = _text(properties[IDENTIFIED_BY[kind]], stage, account, region)
        identifier = {IDENTIFIED_BY[kind]: value}
        found.append({"ResourceType": kind, "LogicalResourceId": name, "ResourceIdentifier": identifier})
    return found


def _text(value: Any, stage: str, account: str, region: str) -> str:
    """A name of the template, which is written out or put together from account and region."""
    text = value["Fn::Sub"] if isinstance(value, dict) else value
    filled = text.replace("${AWS::AccountId}", account).replace("${AWS::Region}", region)
    if "${" in filled or stage not in filled:
        raise AdoptRefused(f"{text}: not a name of stage {stage}")
    return str(filled)


def _here(sts: Any) -> tuple[str, str]:
    return sts.get_caller_identity()["Account"], sts.meta.region_name


def _keys_by_description(kms: Any) -> dict[str, list[str]]:
    """Keys that can be used, by what they are for."""
    found: dict[str, list[str]] = {}
    for page in kms.get_paginator("list_keys").paginate():
        for entry in page["Keys"]:
            key = kms.describe_key(KeyId=entry["KeyId"])["KeyMetadata"]
            if key["KeyState"] == "Enabled":
                found.setdefault(key.get("Description", ""), []).append(key["KeyId"])
    return found


def _only_key(keys: Mapping[str, list[str]], description: str) -> str:
    found = keys.get(description, [])
    if len(found) != 1:
        raise AdoptRefused(
            f"{len(found)} keys are described as {description!r}; there must be one that is enabled"
        )
    return found[0]


def adopt(stage: str, *, write: bool, packaged: Path = PACKAGED, clients: Any = boto3.client) -> int:
    """Run the command; answers the exit status."""
    try:
        template = json.loads(packaged.read_text("utf-8"))
        wanted = identifiers(template, stage, clients)
        if write:
            _import(clients("cloudformation"), f"psx-{stage}", import_template(template), wanted)
    except FileNotFoundError:
        sys.stderr.write(f"psx: run `npx serverless package --stage {stage}` first\n")
        return 2
    except (AdoptRefused, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as refused:
        sys.stderr.write(f"psx: {refused}\n")
        return 2
    for one in wanted:
        (value,) = one["ResourceIdentifier"].values()
        sys.stdout.write(f"{'adopted' if write else 'would adopt'} {one['LogicalResourceId']}: {value}\n")
    return 0


def _import(stacks: Any, stack: str, template: Mapping[str, Any], wanted: list[dict[str, Any]]) -> None:
    stacks.create_change_set(
        StackName=stack,
        ChangeSetName=CHANGE_SET,
        ChangeSetType="IMPORT",
        TemplateBody=json.dumps(template),
        ResourcesToImport=wanted,
    )
    waited = {"Delay": POLL_S, "MaxAttempts": POLLS_MAX}
    named = {"StackName": stack, "ChangeSetName": CHANGE_SET}
    stacks.get_waiter("change_set_create_complete").wait(**named, WaiterConfig=waited)
    stacks.execute_change_set(**named)
    stacks.get_waiter("stack_import_complete").wait(StackName=stack, WaiterConfig=waited)
