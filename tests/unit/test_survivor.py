"""Which side may be chosen when both were changed, and what that says of what is lost."""

import pytest

from replicator.agent.survivor import Sides, choose
from replicator.status import TargetDataState

BOTH = Sides("web", "backup:1500", TargetDataState.RESTORE_REQUIRED, 17)


@pytest.mark.parametrize(
    ("sides", "survivor", "confirm", "allowed", "words"),
    [
        (BOTH, "source", "web", True, "changed in the copy on backup:1500"),
        (BOTH, "source", "", False, "--confirm web"),
        (BOTH, "source", "Web", False, "since it was taken into use is lost"),
        (BOTH, "target", "web", False, "17 operations"),
        *(
            (BOTH._replace(data_state=state), survivor, "web", False, "nothing to choose")
            for state in TargetDataState
            if state is not TargetDataState.RESTORE_REQUIRED
            for survivor in ("source", "target")
        ),
    ],
)
def test_choices(sides: Sides, survivor: str, confirm: str, allowed: bool, words: str) -> None:
    choice = choose(sides, survivor, confirm)
    assert choice.allowed is allowed and words in choice.text and "\n" not in choice.text
