"""Starts the long files first: when the short ones come last, all workers end together."""

import pytest

FOLDERS = (
    "e2e",
    "conformance",
    "integration",
    "contract",
    "fuzz",
    "unit",
)  # from minutes to milliseconds a file


@pytest.hookimpl(trylast=True)  # after the shuffling, which stays within a folder
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order what parallel workers run; who runs tests alone wants the quick answers first."""
    if hasattr(config, "workerinput"):
        items.sort(key=_folder)


def _folder(item: pytest.Item) -> int:
    return FOLDERS.index(item.nodeid.split("/")[1])
