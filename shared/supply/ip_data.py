"""Address data in S3: the operator uploads files, a job checks and publishes them, every process fetches what is published.

The bucket holds `incoming/asn.mmdb` and `incoming/country.mmdb` (what the operator uploads), `published/<sha256>.mmdb`, and
`published/current.json`, which names them. A file that is no database, knows too little, or is older than the one in use is
never published. Fetched files replace the old ones by rename, so a reader sees a whole file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import maxminddb

NAMES: Final = ("asn", "country")
FETCH_EVERY_S: Final = 300.0
FIRST_FETCH_MAX_S: Final = 10.0
"""A node serves with what it has rather than wait for a bucket that does not answer."""
CONNECT_MAX_S: Final = 3
READ_MAX_S: Final = 10
FILE_MAX_BYTES: Final = 256 * 1024 * 1024
SAMPLE_NETWORKS: Final = 2_000
KNOWN_PERCENT_MIN: Final = 50
SHRINK_PERCENT_MIN: Final = 50
_CURRENT: Final = "published/current.json"
_FIELDS: Final = {
    "asn": ("autonomous_system_number", "asn"),
    "country": ("country", "country_code"),
}

log = logging.getLogger("psx.supply")


class DataRefused(Exception):
    """An uploaded file must not be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is told of a checked file."""

    sha256: str
    nodes: int
    built_at_s: int


def check_file(name: str, path: Path, before: Facts | None) -> Facts:
    """Facts of a file that may be used. Raises DataRefused."""
    try:
        with maxminddb.open_database(path) as reader:
            metadata = reader.metadata()
            rows = [row for (_, row), _ in zip(reader, range(SAMPLE_NETWORKS), strict=False)]
    except (OSError, maxminddb.InvalidDatabaseError, ValueError):
        raise DataRefused("is no MMDB file") from None
    known = sum(isinstance(row, dict) and any(row.get(f) for f in _FIELDS[name]) for row in rows)
    if not rows or known * 100 < len(rows) * KNOWN_PERCENT_MIN:
        raise DataRefused(f"tells no {name} of most addresses")
    facts = Facts(hashlib.sha256(path.read_bytes()).hexdigest(), metadata.node_count, metadata.build_epoch)
    if before is not None and facts.built_at_s < before.built_at_s:
        raise DataRefused("is older than the one in use")
    if before is not None and facts.nodes * 100 < before.nodes * SHRINK_PERCENT_MIN:
        raise DataRefused("knows less than half of what the one in use knows")
    return facts


@dataclass(frozen=True, slots=True)
class IpDataStore:
    """The bucket. `client` is a boto3 S3 client; its errors pass through."""

    client: Any
    bucket: str

    def current(self) -> dict[str, Any]:
        """What is published, by name; empty before the first time."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=_CURRENT)
        except self.client.exceptions.NoSuchKey:
            return {}
        found: dict[str, Any] = json.loads(answer["Body"].read())
        return found

    def publish(self) -> dict[str, str]:
        """Check what was uploaded since the last time and publish what is good. Answers what happened, by name."""
        current, report = self.current(), {}
        for name in NAMES:
            try:
                head = self.client.head_object(Bucket=self.bucket, Key=f"incoming/{name}.mmdb")
            except self.client.exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
                report[name] = "nothing uploaded"
                continue
            before = current.get(name)
            if before is not None and before["etag"] == head["ETag"]:
                report[name] = "unchanged"
            elif head["ContentLength"] > FILE_MAX_BYTES:
                report[name] = f"refused: is larger than {FILE_MAX_BYTES} bytes"
            else:
                report[name] = self._publish_one(name, head["ETag"], current)
        return report

    def _publish_one(self, name: str, etag: str, current: dict[str, Any]) -> str:
        kept = {k: v for k, v in current.get(name, {}).items() if k != "etag"}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candidate.mmdb"
            self.client.download_file(self.bucket, f"incoming/{name}.mmdb", str(path))
            try:
                facts = check_file(name, path, Facts(**kept) if kept else None)
            except DataRefused as refused:
                return f"refused: {refused}"
            self.client.upload_file(str(path), self.bucket, f"published/{facts.sha256}.mmdb")
        current[name] = {
            "sha256": facts.sha256,
            "nodes": facts.nodes,
            "built_at_s": facts.built_at_s,
            "etag": etag,
        }
        self.client.put_object(Bucket=self.bucket, Key=_CURRENT, Body=json.dumps(current).encode())
        return "published"


@dataclass(slots=True)
class IpDataMirror:
    """Local copies of what is published. Errors are logged: old files are better than none."""

    store: IpDataStore
    files: dict[str, Path]
    monotonic_s: Callable[[], float] = time.monotonic
    _held: dict[str, str] = field(default_factory=dict)
    _asked_s: float | None = None

    def fetch(self) -> None:
        """Bring newer files, unless that was looked at a few minutes ago. Blocks."""
        now_s = self.monotonic_s()
        if self._asked_s is not None and now_s - self._asked_s < FETCH_EVERY_S:
            return
        self._asked_s = now_s
        try:
            for name, entry in self.store.current().items():
                if name in self.files and self._held.get(name) != entry["sha256"]:
                    self._bring(name, entry["sha256"])
        except Exception as error:  # noqa: BLE001 - boto3 raises many kinds, and none may stop a registration
            log.warning("address data not fetched", extra={"reason": type(error).__name__})

    def _bring(self, name: str, sha256: str) -> None:
        target = self.files[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        self.store.client.download_file(self.store.bucket, f"published/{sha256}.mmdb", str(part))
        if hashlib.sha256(part.read_bytes()).hexdigest() != sha256:
            part.unlink()
            raise DataRefused("came altered")
        part.replace(target)
        self._held[name] = sha256


def mirror_of(bucket: str, asn: Path, country: Path) -> IpDataMirror:
    """A mirror of a bucket, with the standard AWS settings but for how long it waits."""
    import boto3  # noqa: PLC0415 - only where a bucket is set
    from botocore.config import Config  # noqa: PLC0415

    waits = Config(connect_timeout=CONNECT_MAX_S, read_timeout=READ_MAX_S, retries={"total_max_attempts": 2})
    client = boto3.client("s3", config=waits)
    return IpDataMirror(IpDataStore(client, bucket), {"asn": asn, "country": country})


async def first_fetch(bucket: str, asn: Path, country: Path) -> IpDataMirror | None:
    """A node's mirror; None where no bucket is set. A node without a file waits for it, so long and no longer."""
    if not bucket:
        return None
    mirror = await asyncio.to_thread(mirror_of, bucket, asn, country)
    if not all(path.exists() for path in mirror.files.values()):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(mirror.fetch), FIRST_FETCH_MAX_S)
    return mirror


async def follow_bucket(mirror: IpDataMirror | None) -> None:
    """Keep a node's files as they are published, from now on and for ever; returns at once where there is no mirror."""
    while mirror is not None:
        await asyncio.to_thread(mirror.fetch)
        await asyncio.sleep(FETCH_EVERY_S)
