"""How many frames of changes go for each step of a mirror (RP-05)."""

from collections.abc import Sequence

from replicator.sender.flow import Flow


class Mix:
    """What is journaled before a step of the scanner goes before what the step brings, whatever is set here.
    With a `ratio`, the next step is not taken before so many frames of changes have gone, or none is left.
    """

    def __init__(self, flows: Sequence[Flow]) -> None:
        self.ratio = 0
        """0: a step is taken as soon as there is room for what it brings."""
        self._flows = flows
        self._owed = 0

    def step(self) -> None:
        """One is taken."""
        self._owed = self.ratio

    def shipped(self) -> None:
        """A frame of changes has gone."""
        self._owed = max(self._owed - 1, 0)

    @property
    def holds(self) -> bool:
        """Whether changes are to go first."""
        if not min(self._owed, self.ratio):
            return False
        if any(flow.cursor.backlog()[1] for flow in self._flows):
            return True
        self._owed = 0  # those that come now are not what was left
        return False
