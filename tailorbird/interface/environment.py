"""The environment variables of the running embedded stack."""

from cluster.connection import use_stack
from cluster.local.folder import default_folder


def use_running_stack() -> None:
    """Use the embedded stack of `default_folder`, unless Ray or S3 are already configured.

    Call it before Ray is imported, because Ray reads the location of its token once.
    """
    use_stack(default_folder())
