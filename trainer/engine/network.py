"""Which of a machine's networks the processes of a training meet on."""

from __future__ import annotations

import socket

import psutil


def interface_towards(address: str) -> str | None:
    """The name of the network interface by which this machine reaches another one, or itself ("lo" for 127.0.0.1).

    None where there is no way to it. Nothing is sent.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == family and each.address.partition("%")[0] == own for each in addresses):
            return name
    return None
