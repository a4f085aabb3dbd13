"""Certificate authorities for HTTPS requests."""

import os

VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def verify() -> str | bool:
    """Return the file of certificate authorities that the environment names, or True for the
    defaults.

    It is the argument `verify` of `requests`. One variable is enough, although libraries read
    different ones. Raises ValueError if the file does not exist.
    """
    for name in VARIABLES:
        path = os.environ.get(name)
        if path:
            if not os.path.exists(path):
                raise ValueError(
                    f"{name} is {path}, which does not exist; set it to a file of PEM certificates"
                )
            return path
    return True
