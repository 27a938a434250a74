"""How many examples a property gets: enough in each run to meet its usual mistakes, many in a run that has the night.

`./psx test --hypothesis-profile=nightly` asks for the many. Properties that name a number of their own keep it.
"""

from typing import Final

from hypothesis import settings

IN_EACH_RUN: Final = 50
IN_A_NIGHT: Final = 2000

settings.register_profile("each-run", max_examples=IN_EACH_RUN, deadline=None)
settings.register_profile("nightly", max_examples=IN_A_NIGHT, deadline=None)
settings.load_profile("each-run")


def of_each_route() -> int:
    """Examples of what is tried at each of many routes."""
    return max(settings().max_examples // 8, 1)
