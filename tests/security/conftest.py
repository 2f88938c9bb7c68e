# SPDX-License-Identifier: Apache-2.0
"""Both event loops; random tests say nothing about time."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("rpcflow", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rpcflow")


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
