"""Address data goes from S3 to every process without a restart; what is broken, empty, old or altered is never used."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from moto import mock_aws

from functions.jobs import refresh_ip_data
from shared.guard.service import all_incidents
from shared.kernel.codes import IpType
from shared.runtime.dynamo import SyncDynamo
from shared.supply import ip_data
from shared.supply.ip_data import FETCH_EVERY_S, IpDataMirror, IpDataStore, first_fetch, follow_bucket
from shared.supply.origin import CHECK_EVERY_S, OriginReader
from tests.unit.supply.test_origin import HOME_NET, MAXMIND, PHONE_NET, classes, write

pytestmark = pytest.mark.slow

BUCKET = "psx-ip-data"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[IpDataStore]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        client: Any = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        yield IpDataStore(client, BUCKET)


def upload(store: IpDataStore, name: str, path: Path) -> None:
    store.client.upload_file(str(path), BUCKET, f"incoming/{name}.mmdb")


def test_what_is_published_reaches_a_running_process(store: IpDataStore, tmp_path: Path) -> None:
    now = [0.0]
    local = {"asn": tmp_path / "asn.mmdb", "country": tmp_path / "country.mmdb"}
    write(local["asn"], {PHONE_NET: {"asn": "AS1"}})
    write(local["country"], {PHONE_NET: MAXMIND[1]})
    mirror = IpDataMirror(store, local, lambda: now[0])
    reader = OriginReader(
        local["asn"],
        local["country"],
        classes(tmp_path),
        fetch=mirror.fetch,
        monotonic_s=lambda: now[0],
    )
    upload(store, "asn", write(tmp_path / "new.mmdb", {PHONE_NET: MAXMIND[0], HOME_NET: MAXMIND[0]}))
    assert store.publish() == {"asn": "published", "country": "nothing uploaded"}
    assert reader.lookup("203.0.113.1").ip_type is IpType.UNKNOWN
    now[0] += CHECK_EVERY_S
    assert reader.lookup("203.0.113.1").ip_type is IpType.MOBILE
    upload(store, "asn", write(tmp_path / "newer.mmdb", {PHONE_NET: MAXMIND[0], HOME_NET: {"asn": "AS2"}}))
    assert store.publish()["asn"] == "published"
    now[0] += CHECK_EVERY_S
    assert reader.lookup("203.0.113.1").ip_type is IpType.MOBILE
    now[0] += FETCH_EVERY_S
    assert reader.lookup("203.0.113.1").ip_type is IpType.UNKNOWN
    assert store.publish()["asn"] == "unchanged"
    reader.close()


async def test_a_fresh_node_begins_with_what_is_published_and_without_it(
    store: IpDataStore, tmp_path: Path
) -> None:
    files = tmp_path / "geo" / "asn.mmdb", tmp_path / "geo" / "country.mmdb"
    assert await first_fetch("", *files) is None
    assert await first_fetch(BUCKET, *files) is not None
    early = OriginReader(*files, classes(tmp_path), late=True)
    assert early.lookup("203.0.113.1").ip_type is IpType.UNKNOWN
    early.close()
    upload(store, "asn", write(tmp_path / "asn.mmdb", {PHONE_NET: MAXMIND[0], HOME_NET: MAXMIND[0]}))
    assert store.publish()["asn"] == "published"
    await first_fetch(BUCKET, *files)
    reader = OriginReader(*files, classes(tmp_path), late=True)
    assert reader.lookup("203.0.113.1").ip_type is IpType.MOBILE
    reader.close()


def test_what_is_no_database_or_knows_nothing_is_refused(store: IpDataStore, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"<html>please log in</html>")
    upload(store, "asn", broken)
    upload(store, "country", write(tmp_path / "c.mmdb", {PHONE_NET: {"asn": "AS1"}}))
    report = store.publish()
    assert report["asn"] == "refused: is no MMDB file"
    assert report["country"] == "refused: tells no country of most addresses"
    assert store.current() == {}


def test_a_file_that_shrank_by_half_or_is_older_is_refused(store: IpDataStore, tmp_path: Path) -> None:
    many = {f"10.{n}.0.0/16": MAXMIND[0] for n in range(200)}
    upload(store, "asn", write(tmp_path / "many.mmdb", many))
    assert store.publish()["asn"] == "published"
    upload(store, "asn", write(tmp_path / "few.mmdb", {PHONE_NET: MAXMIND[0]}))
    assert "less than half" in store.publish()["asn"]
    held = store.current()["asn"]
    store.client.put_object(
        Bucket=BUCKET,
        Key="published/current.json",
        Body=f'{{"asn": {{"sha256": "{held["sha256"]}", "nodes": 1, "built_at_s": 9999999999, "etag": "x"}}}}'.encode(),
    )
    assert "older" in store.publish()["asn"]


def test_an_altered_or_missing_object_leaves_the_old_file(store: IpDataStore, tmp_path: Path) -> None:
    path = write(tmp_path / "asn.mmdb", {PHONE_NET: MAXMIND[0]})
    before = path.read_bytes()
    upload(store, "asn", write(tmp_path / "new.mmdb", {HOME_NET: MAXMIND[0]}))
    store.publish()
    sha256 = store.current()["asn"]["sha256"]
    store.client.put_object(Bucket=BUCKET, Key=f"published/{sha256}.mmdb", Body=b"altered")
    IpDataMirror(store, {"asn": path}).fetch()
    assert path.read_bytes() == before
    IpDataMirror(IpDataStore(store.client, "no-such-bucket"), {"asn": path}).fetch()
    assert path.read_bytes() == before


def test_the_job_publishes_and_tells_of_what_it_refused(
    store: IpDataStore, dynamo: SyncDynamo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functions.jobs import wiring as jobs
    from shared.runtime.redis import SyncRedis
    from shared.runtime.settings import Settings

    for name, value in (
        ("PSX_STAGE", "local"),
        ("PSX_TABLE_PREFIX", "psx-test-"),
        ("PSX_REDIS_URL", "redis://127.0.0.1:9/0"),
        ("PSX_IP_DATA_BUCKET", BUCKET),
    ):
        monkeypatch.setenv(name, value)
    wired = jobs.Wiring(Settings(), dynamo, SyncRedis("redis://127.0.0.1:9/0"))  # type: ignore[call-arg]
    monkeypatch.setattr(refresh_ip_data, "wiring", lambda: wired)
    broken = tmp_path / "broken"
    broken.write_bytes(b"x")
    upload(store, "asn", broken)
    upload(store, "country", write(tmp_path / "c.mmdb", {PHONE_NET: MAXMIND[1]}))
    report = refresh_ip_data.handler({"job": "refresh_ip_data"}, None)
    assert report == {"asn": "refused: is no MMDB file", "country": "published"}
    (incident,) = all_incidents(dynamo, "psx-test-guard")
    assert (incident.kind, "no MMDB" in incident.message) == ("ip_data_refused", True)
    monkeypatch.setenv("PSX_IP_DATA_BUCKET", "")
    assert "skipped" in refresh_ip_data.handler({"job": "refresh_ip_data"}, None)


async def test_a_node_waits_for_a_silent_bucket_only_while_a_file_is_missing_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), threading.Event()

    class Silent:
        def current(self) -> dict[str, Any]:
            asked.set()
            answers.wait()
            return {}

    files = {name: tmp_path / f"{name}.mmdb" for name in ("asn", "country")}
    monkeypatch.setattr(ip_data, "mirror_of", lambda *_: IpDataMirror(cast(IpDataStore, Silent()), files))
    monkeypatch.setattr(ip_data, "FIRST_FETCH_MAX_S", 0.05)
    try:
        files["asn"].touch()
        assert await first_fetch(BUCKET, *files.values()) is not None
        assert asked.is_set(), "a file is missing"
        asked.clear()
        files["country"].touch()
        mirror = await first_fetch(BUCKET, *files.values())
        assert not asked.is_set(), "old files are better than none"
        following = asyncio.ensure_future(follow_bucket(mirror))
        assert await asyncio.to_thread(asked.wait, 30), "newer ones come while the node serves"
        following.cancel()
    finally:
        answers.set()
