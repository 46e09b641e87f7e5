"""Which addresses are this machine's alone, and how they are written: what the servers here share."""

from __future__ import annotations

import ipaddress
import socket


def is_local(host: str) -> bool:
    """Whether a name or address leads to this very machine, without looking it up anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header


def web_address(host: str, port: int) -> str:
    """The URL of a server that listens on `host`, with a slash at its end."""
    if host in ("0.0.0.0", "::"):  # all of this machine's addresses: its name leads to one
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
