"""Certificate authorities for HTTPS requests. `requests` and OpenSSL read different environment variables."""

import os
import ssl

VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def ca_file() -> str | None:
    """Return the file of certificate authorities that the environment names, or None for the defaults.

    Every client of this package uses it, so one variable is enough. Raises ValueError if the file does not exist.
    """
    for name in VARIABLES:
        path = os.environ.get(name)
        if path:
            if not os.path.exists(path):
                raise ValueError(f"{name} is {path}, which does not exist; set it to a file of PEM certificates")
            return path
    return None


def verify() -> str | bool:
    """Return the argument `verify` of `requests`."""
    return ca_file() or True


def ssl_context() -> ssl.SSLContext:
    """Return the TLS context for aiohttp."""
    path = ca_file()
    if path is not None and os.path.isdir(path):
        return ssl.create_default_context(capath=path)
    return ssl.create_default_context(cafile=path)
