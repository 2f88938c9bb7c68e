# SPDX-License-Identifier: Apache-2.0
"""Random tests here compute only, so how long one takes says nothing but how busy the machine is."""

from hypothesis import HealthCheck, settings

settings.register_profile("rpcflow", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rpcflow")
