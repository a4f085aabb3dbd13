"""A model that exists already and is compared as it is: an entry of `evaluation.contenders`."""

from tailorbird.config.base import ConfigSection


class ContenderConfig(ConfigSection):
    version: str
    """URI of a version of another task of this kind, with the same classes:
    `<registry>/<task>/versions/<name>`."""
