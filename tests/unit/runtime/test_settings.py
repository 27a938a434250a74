"""Settings are typed, complete, silent about secrets, and lab openings stay in the lab."""

import pytest
from pydantic import SecretStr, ValidationError

from shared.runtime.settings import (
    LabSettings,
    Settings,
    Stage,
    listen_address,
    load,
    load_or_exit,
    secret_bytes,
)

GOOD = {"PSX_STAGE": "local", "PSX_TABLE_PREFIX": "psx-local-", "PSX_REDIS_URL": "redis://127.0.0.1:1/0"}


class WithSecret(LabSettings):
    token: SecretStr


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*GOOD, "PSX_TOKEN", "PSX_EGRESS_LAB_ALLOW", "PSX_LAB_HOSTS"):
        monkeypatch.delenv(name, raising=False)


def given(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    for name, value in (GOOD | more).items():
        monkeypatch.setenv(name, value)


def test_values_come_from_the_environment_and_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch)
    settings = load(Settings)
    assert settings.stage is Stage.LOCAL
    assert settings.table("access") == "psx-local-access"
    with pytest.raises(ValidationError):
        settings.stage = Stage.PROD


def test_all_faults_are_told_at_once_and_no_value_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PSX_REDIS_URL", "http://secret-host")
    with pytest.raises(SystemExit) as exit_:
        load_or_exit(WithSecret)
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    for name in ("PSX_STAGE", "PSX_TABLE_PREFIX", "PSX_REDIS_URL", "PSX_TOKEN"):
        assert name in said
    assert "secret-host" not in said


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "rediss+cluster"])
def test_one_server_and_a_cluster_are_addressed_with_and_without_tls(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    given(monkeypatch, PSX_REDIS_URL=f"{scheme}://cache.example:6379/0")
    assert load(Settings).redis_url.startswith(f"{scheme}:")


@pytest.mark.parametrize("name", ["PSX_EGRESS_LAB_ALLOW", "PSX_LAB_HOSTS"])
@pytest.mark.parametrize("stage", ["dev", "staging", "prod"])
def test_lab_openings_are_refused_outside_the_lab(
    monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    given(monkeypatch, **{name: "a=127.0.0.1", "PSX_STAGE": stage})
    with pytest.raises(ValidationError, match="stage local only"):
        load(LabSettings)


def test_lab_openings_are_read_as_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, PSX_EGRESS_LAB_ALLOW="127.80.0.1:443,[::1]:80", PSX_LAB_HOSTS="Target.Lab=127.80.0.1")
    settings = load(LabSettings)
    assert settings.lab_endpoints() == {("127.80.0.1", 443), ("::1", 80)}
    assert settings.lab_names() == {"target.lab": "127.80.0.1"}


@pytest.mark.parametrize("text", ["zz", "00", ""])
def test_a_malformed_secret_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="must be 32 bytes in hex") as refusal:
        secret_bytes(SecretStr(text), 32)
    assert not text or f"'{text}'" not in str(refusal.value)


def test_a_good_secret_is_its_bytes() -> None:
    assert secret_bytes(SecretStr("ab" * 32), 32) == b"\xab" * 32


def test_listen_addresses_are_pairs() -> None:
    assert listen_address("[::1]:80") == ("::1", 80)
    for text in ("80", ":80", "a:b"):
        with pytest.raises(ValueError, match="address:port"):
            listen_address(text)
