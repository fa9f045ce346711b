"""What becomes of what was used when a limit is declared anew."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from stanchion.policies.fields import either


class OnChange(StrEnum):
    """What becomes of what was used when a limit is declared anew.

    `KEEP`: what was used stays used. `SCALE`: the same share of the limit stays used.
    `REMAINING`: what was left stays left. `RESET`: nothing is used.
    """

    KEEP = "keep"
    SCALE = "scale"
    REMAINING = "remaining"
    RESET = "reset"


ChangeField = Annotated[OnChange | Literal["keep", "scale", "remaining", "reset"], either(OnChange)]
