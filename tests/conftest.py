"""Makes the shared store fixtures known to every test."""

pytest_plugins = ["tests.support.stores", "tests.support.lab"]
