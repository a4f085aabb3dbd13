"""Assignment of requests to the arms of an experiment: the champion, or the canary or the shadow of the challenger."""

from typing import Literal, Protocol

from serving.http.schemas import CHAMPION
from tailorbird.registry.draws import CODES, draw_code

CHALLENGER = "challenger"
Arm = Literal["champion", "canary", "shadow"]


class Shares(Protocol):
    """The challenger, and its shares of the champion's requests."""

    @property
    def digest(self) -> str: ...
    @property
    def canary(self) -> float: ...
    @property
    def shadow(self) -> float: ...


def answering_arm(model: str, *, task: str, challenger: Shares | None, unit: str, secret: bytes) -> Arm | None:
    """Return the arm that answers a request for `model`; None if the request takes no part in the experiment.

    Only requests for `champion` or the name of the task take part. `unit` names the subject, or the request if it has
    none. `challenger` is None if none is loaded.
    """
    if model not in (CHAMPION, task):
        return None
    return "canary" if is_in_arm("canary", unit, challenger=challenger, secret=secret) else "champion"


def is_in_arm(arm: Literal["canary", "shadow"], unit: str, *, challenger: Shares | None, secret: bytes) -> bool:
    """Return True if the unit is in the arm; `secret` is that of the task's draws.

    The result is the same for each request and replica, and a unit stays in the arm when the share grows. The code
    depends on the challenger's digest, so the assignments of two challengers are independent.
    """
    if challenger is None:
        return False
    share = challenger.canary if arm == "canary" else challenger.shadow
    return draw_code(secret, arm, challenger.digest, unit) < share * CODES
