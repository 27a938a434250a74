"""The collector of cycles in a process with many long-lived connections."""

import gc
from typing import Final

YOUNG_MAX: Final = 20_000
"""So many new containers before a look for cycles; nearly everything is freed without one."""


def settle() -> None:
    """Call once, when all is set up: what stands now is never looked at again, and the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, 20, 20)
