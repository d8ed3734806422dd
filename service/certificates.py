"""TLS: the service's own certificate, and whom it believes when it asks another of its processes.

No key of a client goes to a process whose certificate was not checked.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from service.settings import SettingError, Settings

#: HAProxy's name for them: the certificate with its chain, and beside it the private key
DOOR_CERTIFICATE, DOOR_KEY = "door.pem", "door.pem.key"


def check(settings: Settings) -> None:
    """Raises SettingError unless the certificate, its key and the authorities can be used."""
    if settings.tls_cert:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            files = f"{settings.tls_cert} with the key {settings.tls_key}"
            raise SettingError(f"tls_cert: {files} can't be used: {_why(error)}") from None
    authorities(settings)


def authorities(settings: Settings) -> ssl.SSLContext:
    """For asking other processes of the service: those of `tls_ca`, else those of the system. Raises
    SettingError."""
    try:
        return ssl.create_default_context(cafile=settings.tls_ca or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"tls_ca: {settings.tls_ca} can't be used: {_why(error)}") from None


def place(settings: Settings, directory: Path) -> None:
    """Puts links to the certificate where the front door looks for it, which reads it at each reload."""
    if settings.tls_cert:
        (directory / DOOR_CERTIFICATE).symlink_to(settings.tls_cert)
        (directory / DOOR_KEY).symlink_to(settings.tls_key)


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "it is not PEM"
    return os.strerror(error.errno) if error.errno else str(error)
