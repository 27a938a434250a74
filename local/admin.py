"""`./psx admin STAGE --key-file FILE`: the first administrator of a deployed stage, and its house account.

Everything else (accounts, keys, people, settings) is done with that key through the API. When every admin key is lost, run
it again: it makes another one. Whoever may write the stage's tables may do this; it is on record like every new key.
The key goes into a new file that only its owner can read, and is printed nowhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions as failures

from local.bootstrap import ADMIN
from shared.access.model import Account, AccountKind, ApiKey, Scope
from shared.access.secrets import new_api_key, token_hash
from shared.access.table import put_account, put_api_key
from shared.guard.model import AuditEvent
from shared.guard.service import append_audit
from shared.kernel.ids import AccountId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import RunsDynamo, StoreUnavailable, SyncDynamo


def make_admin(dynamo: RunsDynamo, stage: str, house: str, at_ms: int) -> str:
    """A new key of the admin account; both accounts are made when they are missing. Raises StoreUnavailable."""
    table, audit = f"psx-{stage}-access", f"psx-{stage}-audit"
    for account_id, kind in ((ADMIN, AccountKind.ADMIN), (AccountId(house), AccountKind.HOUSE)):
        dynamo.run(put_account(table, Account(account_id, kind, at_ms)))
    text = new_api_key()
    key = ApiKey(token_hash(text), ADMIN, frozenset({Scope.ADMIN}), at_ms, label="./psx admin")
    facts = {"account": ADMIN, "scopes": sorted(key.scopes)}
    event = AuditEvent(
        f"acct#{ADMIN}", "api_key_create", "operator", at_ms, auth_method="aws", metadata=facts
    )
    append_audit(dynamo, audit, event)
    dynamo.run(put_api_key(table, key))
    return text


def house_account(client: Any, stage: str) -> str:
    """The parameter that names the house account. Raises ClientError."""
    return str(client.get_parameter(Name=f"/psx/{stage}/house-account")["Parameter"]["Value"])


def admin(stage: str, key_file: Path) -> int:
    """Run the command; answers the exit status."""
    try:
        handle = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        sys.stderr.write(f"psx: {key_file}: {error.strerror}\n")
        return 2
    with os.fdopen(handle, "w") as file:
        try:
            house = house_account(boto3.client("ssm"), stage)
            file.write(make_admin(SyncDynamo(), stage, house, now_ms()) + "\n")
        except (StoreUnavailable, failures.BotoCoreError, failures.ClientError) as error:
            key_file.unlink()
            sys.stderr.write(f"psx: stage {stage} cannot be reached, or is not deployed: {error}\n")
            return 2
    sys.stdout.write(f"accounts {ADMIN} and {house}; the admin's API key is in {key_file}\n")
    return 0
