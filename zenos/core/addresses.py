"""Addresses of the network, as people write them and as sockets name them."""

from __future__ import annotations

import ipaddress


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address; None for a name. An IPv4 address that a socket for both names as IPv6 is one."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def is_wildcard(text: str) -> bool:
    """Whether it stands for all addresses of the machine: to be listened on, not to be asked."""
    found = address_of(text)
    return found is not None and found.is_unspecified


def to_ask(text: str) -> str:
    """Under which host one asks who listens there: for a wildcard the loopback, of its family."""
    found = address_of(text)
    if found is None or not found.is_unspecified:
        return text
    return "127.0.0.1" if found.version == 4 else "::1"
