"""Where a server of ours listens: the socket, taken before anything large is loaded."""

from __future__ import annotations

import errno
import os
import socket

from modelassay.errors import InputError, UnavailableError, first_line


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, taken before anything large is loaded.

    Raises:
        InputError: there is no such address.
        UnavailableError: it is in use, or may not be used.
    """
    try:
        found_at = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"There is no address {host[:80]!r}: {first_line(error, 80)}.") from error
    family, kind, number, _, address = found_at
    found = socket.socket(family, kind, number)
    try:
        if os.name == "posix":  # elsewhere it would let two servers have one port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise UnavailableError(
                f"{host}:{port} is in use; stop what listens there or give another port."
            ) from error
        raise UnavailableError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; give another."
        ) from error
    return found


def address_of(listening: socket.socket, host: str) -> str:
    """HOST:PORT as a URL has it."""
    place = f"[{host}]" if ":" in host else host
    return f"{place}:{listening.getsockname()[1]}"
