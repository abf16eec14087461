"""The interface that gloo is told to use."""

import psutil

from trainer.engine.network import interface_towards


def test_loopback_is_reached_by_loopback_and_nothing_by_nothing() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no-such-host.invalid") is None


def test_each_address_of_this_machine_is_on_its_own_interface() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family.name == "AF_INET":
                assert interface_towards(each.address) == name
