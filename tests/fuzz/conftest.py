"""Profiles of Hypothesis: some hundreds of examples in `make test`, 10,000 in `make soak`."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "test", max_examples=60, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.register_profile(
    "soak", max_examples=10_000, deadline=None, database=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile(os.environ.get("FUZZ_PROFILE", "test"))
