"""The lab's MMDB files for tests."""

from pathlib import Path

import pytest

from local import lab
from shared.supply.origin import OriginReader


@pytest.fixture(scope="session")
def lab_files(tmp_path_factory: pytest.TempPathFactory) -> lab.LabFiles:
    """MMDBs, ASN table and certificates of the lab."""
    return lab.write_files(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def origins(lab_files: lab.LabFiles) -> OriginReader:
    """A reader on the lab's files."""
    return OriginReader(lab_files.asn_mmdb, lab_files.country_mmdb, lab_files.asn_classes)


def pem_keys() -> tuple[str, str]:
    """A fresh Ed25519 pair: (private PEM, public PEM)."""
    fresh = lab.fresh_secrets()
    return fresh.jwt_private, fresh.jwt_public


def files_of(folder: Path) -> lab.LabFiles:
    """Paths in a folder, for tests that write their own databases."""
    names = ("asn.mmdb", "country.mmdb", "classes.csv", "ca.pem", "t.pem", "r.pem")
    return lab.LabFiles(*(folder / name for name in names))
