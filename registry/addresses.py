"""What an address on the network is: its origin, whether it is private. Pure text and numbers.

Called by the transport, which keeps the rules about them, and by whoever shows an address in an error.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_EMBEDDED_IPV4 = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32", "::/96")]


def origin_of(url: str) -> str:
    """`scheme://host[:port]`: what credentials belong to, and all that errors show of a signed URL."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    port = f":{parts.port}" if parts.port and parts.port != default else ""
    host = (parts.hostname or "").lower()
    return f"{parts.scheme.lower()}://{f'[{host}]' if ':' in host else host}{port}"


def literal_of(host: str) -> Address | None:
    """The address that the host is, or stands for wherever it is asked."""
    if host == "localhost" or host.endswith(".localhost"):
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def is_private(address: Address, public: Sequence[Network] = ()) -> bool:
    """Whether the public network has no business there; `public` are ranges to be taken as public."""
    if any(address in network for network in public):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_private(address.ipv4_mapped, public)
        if any(address in network for network in _EMBEDDED_IPV4):
            return True
    return not address.is_global or address.is_multicast
