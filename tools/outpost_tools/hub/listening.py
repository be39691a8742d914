"""A listening socket, or one sentence that says why there is none."""

import errno
import os
import resource
import socket

from outpost_tools.errors import OutpostError

BACKLOG = 512
FILES_MAX = 65536


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as why:
        listener.close()
        raise OutpostError(_cannot_listen(host, port, why)) from None
    listener.setblocking(False)
    return listener


def _cannot_listen(host: str, port: int, why: Exception) -> str:
    where = f"Port {port} on {host or 'every address'}"
    code = why.errno if isinstance(why, OSError) else None
    if code == errno.EADDRINUSE:
        return f"{where} is in use by another program: stop it, or give another --port."
    if code == errno.EACCES:
        return f"{where} needs more rights than you have: give a --port above 1023."
    if code == errno.EADDRNOTAVAIL or isinstance(why, socket.gaierror):
        return f"{host} is no address of this machine: give another --host."
    text = os.strerror(code) if code and code > 0 else str(why)
    return f"{where} cannot be listened on ({text}): give another --host or --port."


def more_files() -> None:
    """As many open files as the machine allows: 1,024 are few for devices and strangers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
