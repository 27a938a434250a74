"""What the classes behind routes have in common: they reach the container's wiring only when a request needs it."""

from collections.abc import Callable
from typing import ClassVar

from functions.api.wiring import Wiring


class Desk:
    """The work behind some routes, which is mostly about one table."""

    table_name: ClassVar[str] = "access"

    def __init__(self, wiring: Callable[[], Wiring]) -> None:
        self._wiring = wiring

    @property
    def w(self) -> Wiring:
        """The container's wiring."""
        return self._wiring()

    @property
    def table(self) -> str:
        """The full name of the table that the work is about."""
        return self.w.settings.table(self.table_name)
