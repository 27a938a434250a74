"""serverless.yml and what it compiles to: complete, consistent with the code, and clean in the eyes of AWS's own linter."""

import importlib
import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import boto3
import grimp
import pytest
import yaml
from moto import mock_aws

from functions.sealing import SealingSettings, envelope
from functions.x402.handler import JOBS
from local.configure import (
    PARAMETERS_FILE,
    SECRETS,
    ConfigureRefused,
    create_secrets,
    parameter_names,
    publish_keys,
    write_parameters,
)
from local.lab import LabFiles, relays_setting
from local.packaging import AWS_SERVICES
from local.paths import ROOT
from local.tables import read_serverless, tables
from shared.runtime.settings import PREFIX, SECRETS_VARIABLE, SecretsUnreadable, Settings, load
from tests.support.cloud import serverless
from tests.support.permissions import as_function, granted

pytestmark = pytest.mark.slow

STAGE = "test"
NODES_ALONE = {"aioboto3"}  # imported when a node makes its executor
ALARM = "AWS::CloudWatch::Alarm"
RUNTIME_SERVICES = {"ec2", "logs", "sqs", "xray"}  # called for a function, not by it
FUNCTIONS = read_serverless(STAGE)["functions"]
NODES = {"PSX_EVM_RPC_URLS": "http://127.0.0.1:9", "PSX_SOLANA_RPC_URLS": "http://127.0.0.1:9"}
PARAMETERS: dict[str, Any] = {
    "api-base-url": "https://api.example",
    "api-certificate": "none",
    "gateway-host": "gw.example",
    "gateway-http-port": "7000",
    "gateway-socks-port": "7001",
    "echo-url": "https://echo.example/ip",
    "house-account": "psx_x402pool",
    "evm-recipient": "0x" + "11" * 20,
    "solana-recipient": "4Nd1mBQtrMJVYVfKf2PJy9NZUZdTAsp7D4xWLs4gDB4T",
    "relays": json.loads(relays_setting({"eu": 1, "us": 2})),
}


def settings_of(name: str) -> type[Settings]:
    """The settings class that a function's wiring loads."""
    kind = FUNCTIONS[name]["handler"].split(".")[1]
    module = importlib.import_module(f"functions.{kind}.wiring")
    own = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Settings) and c is not Settings
    ]
    return own[0] if own else Settings


def environment_of(name: str) -> dict[str, Any]:
    """Variables that the template gives a function."""
    return {
        **read_serverless(STAGE)["provider"]["environment"],
        **FUNCTIONS[name].get("environment", {}),
    }


def secrets_of(name: str) -> list[str]:
    return [s for s in environment_of(name).get(SECRETS_VARIABLE, "").split(",") if s]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_variable_a_function_reads_is_set_and_each_one_set_is_read(name: str) -> None:
    fields = settings_of(name).model_fields
    reads = {PREFIX + field.upper() for field in fields}
    needs = {PREFIX + field.upper() for field, info in fields.items() if info.is_required()}
    plain = set(environment_of(name)) - {SECRETS_VARIABLE}
    secret = [v for s in secrets_of(name) for v in SECRETS[s.rpartition("/")[2]]]
    assert needs <= plain | set(secret)
    assert plain | set(secret) <= reads
    assert plain.isdisjoint(secret)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_configured_stage_gives_each_function_settings_that_it_accepts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with mock_aws():
        create_secrets(boto3.client("secretsmanager"), STAGE, NODES)
        parameters = boto3.client("ssm")
        write_parameters(parameters, STAGE, PARAMETERS)
        parameters.put_parameter(
            Name=f"/psx/{STAGE}/network/redis-url", Value="rediss://cache.example:6379/0", Type="String"
        )
        declared = yaml.safe_load(PARAMETERS_FILE.read_text().replace("${sls:stage}", STAGE))
        for variable, value in environment_of(name).items():
            given = value["Ref"] if isinstance(value, dict) else value
            if given in declared:
                given = parameters.get_parameter(Name=declared[given]["Default"])["Parameter"]["Value"]
            monkeypatch.setenv(variable, "dev" if variable == "PSX_STAGE" else given)
        keys = boto3.client("kms")
        key = keys.create_key()["KeyMetadata"]["KeyId"]
        keys.create_alias(AliasName=f"alias/psx-{STAGE}-access", TargetKeyId=key)
        with as_function(name):
            settings = load(settings_of(name))
            assert settings.table("access") == f"psx-{STAGE}-access"
            if isinstance(settings, SealingSettings):
                sealed = envelope(settings).seal("text", "row")
                assert envelope(settings).open(sealed, "row") == "text"


def test_a_secret_that_cannot_be_read_is_named_and_its_content_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv(SECRETS_VARIABLE, "psx/test/sale")
    with mock_aws():
        with pytest.raises(SecretsUnreadable, match=r"psx/test/sale: ResourceNotFoundException"):
            load(Settings)
        boto3.client("secretsmanager").create_secret(Name="psx/test/sale", SecretString="s3cret no json")
        with pytest.raises(SecretsUnreadable) as refused:
            load(Settings)
        assert "s3cret" not in str(refused.value)


def test_configuring_twice_changes_no_secret_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client, ssm = boto3.client("secretsmanager"), boto3.client("ssm")
        with pytest.raises(ConfigureRefused, match="PSX_EVM_RPC_URLS, PSX_SOLANA_RPC_URLS"):
            create_secrets(client, STAGE, {})
        create_secrets(client, STAGE, NODES)
        first = client.get_secret_value(SecretId=f"psx/{STAGE}/credentials")["SecretString"]
        assert not any(create_secrets(client, STAGE, NODES).values())
        assert client.get_secret_value(SecretId=f"psx/{STAGE}/credentials")["SecretString"] == first
        wrong = {("relay" if name == "relays" else name): "x" for name in parameter_names()}
        with pytest.raises(ConfigureRefused, match="missing: relays; unknown: relay"):
            write_parameters(ssm, STAGE, wrong)
        with pytest.raises(ConfigureRefused, match=r"relays: .*exactly one region"):
            write_parameters(ssm, STAGE, {**PARAMETERS, "relays": {}})
        alone = [{"place": "eu", "name": "p.example", "address": "192.0.2.9", "port": 443, "plainPort": 80}]
        with pytest.raises(ConfigureRefused, match="nodes/probe-targets: must name targets in at least 2"):
            write_parameters(ssm, STAGE, {**PARAMETERS, "nodes/probe-targets": alone})
        assert ssm.describe_parameters()["Parameters"] == []


def test_public_keys_are_published_and_follow_a_rotation_and_private_ones_never_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client, ssm = boto3.client("secretsmanager"), boto3.client("ssm")
        create_secrets(client, STAGE, NODES)
        names = publish_keys(client, ssm, STAGE)
        told = [ssm.get_parameter(Name=name)["Parameter"]["Value"] for name in names]
        assert all("PUBLIC KEY" in value and "PRIVATE" not in value for value in told)
        rotated = json.dumps({"PSX_JWT_PRIVATE_KEY": "new", "PSX_JWT_PUBLIC_KEY": "old and new"})
        client.put_secret_value(SecretId=f"psx/{STAGE}/device-tokens", SecretString=rotated)
        publish_keys(client, ssm, STAGE)
        key = ssm.get_parameter(Name=f"/psx/{STAGE}/nodes/jwt-public-key")["Parameter"]["Value"]
        assert key == "old and new"


def test_the_network_stack_publishes_what_the_functions_read_of_it() -> None:
    declared = {entry["Default"] for entry in yaml.safe_load(PARAMETERS_FILE.read_text()).values()}
    read = {name.rpartition("/")[2] for name in declared if "/network/" in name}
    text = (ROOT / "infra" / "network.yml").read_text()
    assert read <= set(re.findall(r"/psx/\$\{Stage\}/network/([a-z-]+)", text))


def schedules() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(function, schedule) of everything that the template fires by itself."""
    return [
        (f, event["eventBridge"])
        for f in FUNCTIONS.values()
        for event in f["events"]
        if "eventBridge" in event
    ]


def test_schedules_and_jobs_are_the_same_set() -> None:
    scheduled = {(f["handler"].rpartition(".")[0], entry["input"]["job"]) for f, entry in schedules()}
    modules = {f"functions.jobs.{path.stem}" for path in (ROOT / "functions" / "jobs").glob("*.py")}
    modules = {m for m in modules if hasattr(importlib.import_module(m), "handler")}
    coded = {(module, module.rpartition(".")[2]) for module in modules}
    coded |= {("functions.x402.handler", job) for job in JOBS}
    assert scheduled == coded


def test_whatever_is_scheduled_ends_before_it_is_too_late_and_keeps_what_failed() -> None:
    queue = {"Fn::GetAtt": ["FailedJobs", "Arn"]}
    for function, entry in schedules():
        assert entry["name"] == f"psx-{STAGE}-{entry['input']['job'].replace('_', '-')}"
        assert entry["retryPolicy"] == {"maximumEventAge": 60, "maximumRetryAttempts": 1}, entry
        assert entry["deadLetterQueueArn"] == queue, entry
        assert (function["maximumRetryAttempts"], function["maximumEventAge"]) == (0, 60), entry
        assert function["destinations"]["onFailure"]["arn"] == queue, entry


def test_money_and_listing_jobs_alone_run_one_at_a_time() -> None:
    assert {n for n, f in FUNCTIONS.items() if "reservedConcurrency" in f} == {"list-exits", "roll-up"}


def test_no_table_can_be_lost_with_its_stack() -> None:
    resources = read_serverless(STAGE)["resources"]["Resources"]
    for name, properties in tables(STAGE).items():
        assert (resources[name]["DeletionPolicy"], resources[name]["UpdateReplacePolicy"]) == (
            "RetainExceptOnCreate",  # a first deployment that failed can be repeated
            "Retain",
        )
        assert properties["DeletionProtectionEnabled"] == "${param:deletionProtection}", name
        assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}, name
        assert properties["SSESpecification"]["KMSMasterKeyId"] == {"Fn::GetAtt": ["DataKey", "Arn"]}, name


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, lab_files: LabFiles) -> dict[str, dict[str, Any]]:
    """Stage -> the CloudFormation template of the deploy tool. Empty zips stand in for the packages."""
    folder = tmp_path_factory.mktemp("compiled")
    for name in FUNCTIONS:
        (folder / f"{name}.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    found = {}
    for stage in ("dev", "prod"):  # staging is what neither names: the default
        where = ["--package", str(folder / stage), "--param", f"packages={folder}"]
        serverless("package", "--stage", stage, *where, env={"PATH": "/usr/bin:/bin", "HOME": str(folder)})
        text = (folder / stage / "cloudformation-template-update-stack.json").read_text()
        found[stage] = json.loads(text)
    return found


@pytest.mark.slow
def test_the_compiled_templates_are_clean(compiled: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for stage, template in compiled.items():
        (tmp_path / f"{stage}.json").write_text(json.dumps(template))
    files = [*(str(tmp_path / f"{stage}.json") for stage in compiled), str(ROOT / "infra" / "network.yml")]
    linter = str(Path(sys.executable).parent / "cfn-lint")
    # W3005: the deploy tool states dependencies that references imply already.
    done = subprocess.run(
        [linter, "--ignore-checks", "W3005", "--regions", "eu-central-1", "--", *files],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_stages_differ_in_names_and_in_what_protects_them(compiled: dict[str, dict[str, Any]]) -> None:
    protected = {}
    names = []
    for stage, template in compiled.items():
        resources = template["Resources"].values()
        found = [r["Properties"] for r in resources if r["Type"] == "AWS::DynamoDB::Table"]
        protected[stage] = {p["DeletionProtectionEnabled"] for p in found}
        names += [p["TableName"] for p in found]
        assert all(
            r.get("Properties", {}).get("RetentionInDays")
            for r in resources
            if r["Type"] == "AWS::Logs::LogGroup"
        )
    assert protected == {"dev": {False}, "prod": {True}}
    given = read_serverless(STAGE)["params"]
    assert given["default"]["deletionProtection"] is True
    assert "staging" not in given
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_what_holds_data_is_neither_deleted_nor_replaced_by_a_deployment(
    compiled: dict[str, dict[str, Any]],
) -> None:
    resources = compiled["dev"]["Resources"].values()
    kept = {r["Type"] for r in resources if r.get("DeletionPolicy") == "RetainExceptOnCreate"}
    allowed, denied = read_serverless(STAGE)["provider"]["stackPolicy"]
    assert (allowed["Effect"], denied["Effect"]) == ("Allow", "Deny")
    assert set(denied["Action"]) == {"Update:Delete", "Update:Replace"}
    assert set(denied["Condition"]["StringEquals"]["ResourceType"]) == kept
    holds = {"AWS::DynamoDB::Table", "AWS::KMS::Key"}
    assert all(r.get("UpdateReplacePolicy") == "Retain" for r in resources if r["Type"] in holds)


@pytest.mark.slow
def test_every_alarm_tells_somebody_and_names_the_page_that_says_what_to_do(
    compiled: dict[str, dict[str, Any]],
) -> None:
    page = (ROOT / "docs" / "operations" / "incidents.md").read_text("utf-8")
    written = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", page, re.M)}
    alarms = [r["Properties"] for r in compiled["prod"]["Resources"].values() if r["Type"] == ALARM]
    assert alarms
    for alarm in alarms:
        assert alarm["AlarmActions"] == [{"Ref": "Alarms"}], alarm
        assert alarm["AlarmDescription"].rpartition("incidents.md#")[2] in written, alarm


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "line", "written"),
    [
        ("SaleClosed", "sale closed", "functions/x402/validate.py"),
        ("RatesMissing", "rates missing", "functions/jobs/roll_up.py"),
    ],
)
def test_an_alarm_on_a_log_line_counts_the_line_that_is_written(
    compiled: dict[str, dict[str, Any]], name: str, line: str, written: str
) -> None:
    resources = compiled["prod"]["Resources"]
    counted = resources[f"{name}Lines"]["Properties"]
    assert counted["LogGroupName"]["Ref"] in resources
    assert counted["FilterPattern"] == f'{{ $.event = "{line}" }}'
    assert f'"{line}"' in (ROOT / written).read_text()
    (made,) = counted["MetricTransformations"]
    alarm = resources[name]["Properties"]
    assert (alarm["Namespace"], alarm["MetricName"]) == (made["MetricNamespace"], made["MetricName"])


@pytest.mark.slow
def test_roles_name_what_they_allow_wherever_it_has_a_name(compiled: dict[str, dict[str, Any]]) -> None:
    roles = [r["Properties"] for r in compiled["prod"]["Resources"].values() if r["Type"] == "AWS::IAM::Role"]
    statements = [
        s for role in roles for policy in role["Policies"] for s in policy["PolicyDocument"]["Statement"]
    ]
    denied = [s for s in statements if s["Effect"] == "Deny"]
    assert {json.dumps(s["Condition"]) for s in denied} == {
        json.dumps({"StringNotEquals": {"aws:SourceVpc": {"Ref": "Vpc"}}})
    }
    assert len(denied) == len(roles), "tables are reached through the VPC's endpoint alone"
    statements = [s for s in statements if s["Effect"] == "Allow"]
    nameless = {
        a
        for s in statements
        if s["Resource"] == "*"
        for a in (s["Action"] if isinstance(s["Action"], list) else [s["Action"]])
    }
    assert {a.partition(":")[0] for a in nameless} == {"ec2", "xray"}
    assert "*" not in "".join(a for s in statements for a in s["Action"])


@pytest.mark.slow
def test_no_function_has_a_role_or_an_alarm_that_the_template_forgot(
    compiled: dict[str, dict[str, Any]],
) -> None:
    resources = compiled["prod"]["Resources"]
    functions = {k: r["Properties"] for k, r in resources.items() if r["Type"] == "AWS::Lambda::Function"}
    roles = [json.dumps(p["Role"]) for p in functions.values()]
    assert len(set(roles)) == len(functions) == len(FUNCTIONS)
    assert "IamRoleLambdaExecution" not in resources
    for properties in functions.values():
        assert properties["VpcConfig"]["SubnetIds"] == {"Fn::Split": [",", {"Ref": "PrivateSubnets"}]}
        assert properties["TracingConfig"] == {"Mode": "Active"}
    watched = json.dumps([r for r in resources.values() if r["Type"] == "AWS::CloudWatch::Dashboard"])
    assert [k for k in functions if k not in watched] == []


def test_locks_hold_every_package_that_a_function_imports() -> None:
    graph = grimp.build_graph(
        "functions",
        "shared",
        cache_dir=None,
        exclude_type_checking_imports=True,
        include_external_packages=True,
    )
    distributions = packages_distributions()
    for name, function in FUNCTIONS.items():
        module = function["handler"].rpartition(".")[0]
        lock = (ROOT / "requirements" / f"{module.split('.')[1]}.txt").read_text()
        locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.M))
        reached = {m.partition(".")[0] for m in graph.find_upstream_modules(module)}
        packages = reached - {"functions", "shared"} - NODES_ALONE - sys.stdlib_module_names
        needed = {d.lower().replace("_", "-") for p in packages for d in distributions[p]}
        assert needed - locked == set(), name


def test_packages_describe_every_aws_service_that_functions_may_call() -> None:
    called = {action.partition(":")[0] for name in FUNCTIONS for action, _ in granted(name)}
    assert called - RUNTIME_SERVICES <= AWS_SERVICES
