"""How long the hostile tests try: short as part of all tests, long for ``make hostile``."""

import os

from hypothesis import HealthCheck, settings

LONG = os.environ.get("SINKSCOPE_HOSTILE") == "long"


def tries(short: int, long: int = 1000) -> settings:
    """Examples of one property. The short run tries the same ones each time, the long run others."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(
        max_examples=long if LONG else short,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=quiet,
    )
