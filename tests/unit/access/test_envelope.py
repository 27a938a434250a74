"""Envelopes: what opens, what does not, and how often the master key is asked."""

import base64
from typing import Any

import boto3
import pytest
from moto import mock_aws
from pydantic import ValidationError

from functions.sealing import SealingSettings, envelope
from shared.access import envelope as rules
from shared.access.envelope import Envelope, KmsKeyRing, LocalKeyRing
from shared.access.secrets import SealBroken
from shared.runtime.dynamo import StoreUnavailable

PEPPER = b"p" * 32


class CountingRing(LocalKeyRing):
    """A local ring that counts what it is asked."""

    def __init__(self, master: bytes = b"m" * 32) -> None:
        super().__init__(master)
        self.made = self.unwrapped = 0

    def new_data_key(self) -> tuple[bytes, bytes]:
        self.made += 1
        return super().new_data_key()

    def unwrap(self, wrapped: bytes) -> bytes:
        self.unwrapped += 1
        return super().unwrap(wrapped)


class Clock:
    """A clock that a test turns."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_sealed_text_opens_elsewhere_with_the_master_key_and_in_its_row_only() -> None:
    sealed = Envelope(CountingRing(), PEPPER, Clock()).seal("pak_secret", "pak#1")
    reader = Envelope(CountingRing(), PEPPER, Clock())
    assert reader.open(sealed, "pak#1") == "pak_secret"
    assert "pak_secret" not in sealed
    with pytest.raises(SealBroken):
        reader.open(sealed, "pak#2")
    with pytest.raises(SealBroken):
        Envelope(CountingRing(b"x" * 32), PEPPER, Clock()).open(sealed, "pak#1")


@pytest.mark.parametrize("damaged", ["", "e1", "e1.a.b", "e1..", "e2.{}.{}", "e1.{}.AAAA", "e1.AAAA.{}"])
def test_what_is_damaged_is_broken_and_nothing_else(damaged: str) -> None:
    box = Envelope(CountingRing(), PEPPER, Clock())
    _, wrapped, body = box.seal("x", "row").split(".")
    with pytest.raises(SealBroken):
        box.open(damaged.format(wrapped, body), "row")


def test_a_data_key_serves_for_its_time_and_its_number_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SEALS_PER_DATA_KEY_MAX", 3)
    ring, clock = CountingRing(), Clock()
    box = Envelope(ring, PEPPER, clock)
    for _ in range(3):
        box.seal("x", "row")
    assert ring.made == 1
    box.seal("x", "row")
    assert ring.made == 2
    clock.now_s = rules.DATA_KEY_LIFE_S
    box.seal("x", "row")
    assert ring.made == 3


def test_unwrapped_keys_are_kept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "UNWRAPPED_KEPT_MAX", 2)
    sealed = [Envelope(CountingRing(), PEPPER, Clock()).seal("x", "row") for _ in range(3)]
    ring = CountingRing()
    box = Envelope(ring, PEPPER, Clock())
    for text in (sealed[0], sealed[0], sealed[1], sealed[2]):
        box.open(text, "row")
    assert ring.unwrapped == 3
    box.open(sealed[0], "row")
    assert ring.unwrapped == 4


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("aws")
def test_kms_wraps_the_data_key_and_no_other_key_of_it_opens_the_text() -> None:
    with mock_aws():
        kms: Any = boto3.client("kms")
        mine = kms.create_key()["KeyMetadata"]["KeyId"]
        sealed = Envelope(KmsKeyRing(mine, kms), PEPPER, Clock()).seal("pak_secret", "pak#1")
        assert Envelope(KmsKeyRing(mine, kms), PEPPER, Clock()).open(sealed, "pak#1") == "pak_secret"
        wrapped = base64.urlsafe_b64decode(sealed.split(".")[1])
        with pytest.raises(kms.exceptions.InvalidCiphertextException):
            kms.decrypt(CiphertextBlob=wrapped, EncryptionContext={"purpose": "other"})
        forged = ".".join(["e1", base64.urlsafe_b64encode(mine.encode() + bytes(64)).decode(), "AAAA"])
        with pytest.raises(SealBroken):
            Envelope(KmsKeyRing(mine, kms), PEPPER, Clock()).open(forged, "pak#1")
        with pytest.raises(StoreUnavailable):
            Envelope(KmsKeyRing("alias/none", kms), PEPPER, Clock()).seal("x", "row")


def settings(**fields: Any) -> SealingSettings:
    common = {"table_prefix": "t-", "redis_url": "redis://127.0.0.1", "secret_pepper": "00" * 32}
    return SealingSettings(**{**common, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"stage": "local"},
        {"stage": "prod"},
        {"stage": "prod", "master_key": "11" * 32},
        {"stage": "local", "master_key": "11" * 32, "kms_key_id": "alias/a"},
        {"stage": "local", "master_key": "11"},
    ],
)
def test_a_master_key_is_never_a_default_and_outside_local_always_kms(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**fields)
    assert "11" * 32 not in str(refused.value)


def test_settings_make_the_envelope_they_say() -> None:
    box = envelope(settings(stage="local", master_key="11" * 32))
    assert box.open(box.seal("x", "row"), "row") == "x"
