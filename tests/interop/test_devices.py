"""Attributes, streams and synchronisation of remote devices."""

from __future__ import annotations

import pytest

from .peers import Link

pytestmark = pytest.mark.interop

UNKNOWN_TO_CPU = [
    "max_threads_per_block", "warp_size", "max_shared_memory_per_block", "compute_version", "device_name",
    "max_clock_rate", "multi_processor_count", "api_version", "driver_version", "l2_cache_size_bytes",
    "available_global_memory",
]  # fmt: skip


def test_cpu_exists(link: Link) -> None:
    assert link.client.attr(link.cpu, "exist")


@pytest.mark.parametrize("name", ["cuda", "rocm"])
def test_other_devices_do_not_exist(link: Link, name: str) -> None:
    assert not link.client.attr(link.session.device(name, 0), "exist")


def test_total_memory(link: Link) -> None:
    total = link.client.attr(link.cpu, "total_global_memory")
    assert isinstance(total, int)
    assert total > 1 << 28


@pytest.mark.parametrize("name", UNKNOWN_TO_CPU)
def test_attributes_a_cpu_does_not_have(link: Link, name: str) -> None:
    assert link.client.attr(link.cpu, name) is None


def test_attribute_of_a_missing_device(link: Link) -> None:
    with pytest.raises(link.client.RPCError):
        link.client.attr(link.session.device("cuda", 0), "max_threads_per_block")
    assert link.call("testing.echo", 1) == 1


def test_streams(link: Link) -> None:
    device = link.cpu
    stream = link.client.stream(device, "create")
    link.client.stream(device, "set", stream)
    device.sync(stream)
    link.client.stream(device, "free", stream)
    device.sync()
    assert link.call("testing.echo", 1) == 1
