"""Host names, ports and network interfaces for the processes of one run."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

SIOCGIFADDR = 0x8915  # the ioctl that returns an interface's IPv4 address
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"  # by default gloo uses the address that the machine's name resolves to


def resolves(host: str) -> bool:
    """True if the name resolves to an address."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def free_port() -> int:
    """Return an unused port on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def interface_towards(host: str) -> str | None:
    """Return the network interface through which this machine reaches the host, None if unknown."""
    if not host or sys.platform != "linux":
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing, only consults the routing table
        mine = probe.getsockname()[0]
        if mine.startswith("127."):
            return "lo"
        return next((name for _, name in socket.if_nameindex() if _address(probe, name) == mine), None)
    return None


def _address(probe: socket.socket, name: str) -> str:
    import fcntl

    try:
        answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:  # the interface has no address
        return ""
    return socket.inet_ntoa(answer[20:24])


def listen(host: str, port: int, everywhere: bool) -> int:
    """Return the descriptor of a socket that listens on the host's address, or on all addresses of this machine."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    server = socket.socket(family, kind, proto)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port) if everywhere else address)
        server.listen(1024)
    except OSError:
        server.close()
        raise
    return server.detach()


def is_own_name_only(host: str) -> bool:
    """True if a host name (not an address) resolves to the loopback interface, as many machines' own names do.

    Other machines resolve it to a different address.
    """
    with contextlib.suppress(OSError):
        socket.inet_aton(host)
        return False
    with contextlib.suppress(OSError):
        return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]).startswith("127.")
    return False
