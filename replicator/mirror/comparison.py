"""Which files a mirror sends, and what of them: the decision table. Pure.

A source cannot see its target. It *claims* that a file of the target is right as it is, and the target checks
that at exactly this place of the stream; what does not hold is brought.
"""

from enum import IntEnum
from typing import NamedTuple


class Claim(IntEnum):
    """What makes a regular file of the target right as it is. Numbers are those on the wire."""

    SIZE_AND_TIME = 0  # it has the size and the mtime of the source's
    NOT_OLDER = 1  # the source's is not newer: the target's is left as it is, even if it differs
    CONTENT = 2  # its data and holes have the digest that comes with the claim
    BROUGHT = 4  # as 0, and it was made since this mirror began, or those that it continues
    ELSEWHERE = 5  # nothing has its name, but a file of its size and mtime is there, of which it is built
    NOTHING = 3  # its blocks are compared, whatever it looks like


class Comparison(NamedTuple):
    """How a mirror brings regular files.

    `claim` None: all are brought, nothing is claimed. `blocks`: of what is brought only blocks that differ
    travel, where the target has a file that they can be compared with; else whole files.
    """

    claim: Claim | None
    blocks: bool

    @property
    def believes_attributes(self) -> bool:
        """Whether a file that looks the same, or newer, is believed to be right."""
        return self.claim in (Claim.SIZE_AND_TIME, Claim.NOT_OLDER)


WHOLE = Comparison(None, blocks=False)

_WHOLE_IF_DIFFERENT = Comparison(Claim.SIZE_AND_TIME, blocks=False)
_WHOLE_IF_NEWER = Comparison(Claim.NOT_OLDER, blocks=False)
_BLOCKS_IF_DIFFERENT = Comparison(Claim.SIZE_AND_TIME, blocks=True)
_BLOCKS_IF_NEWER = Comparison(Claim.NOT_OLDER, blocks=True)
_BLOCKS_OF_ALL = Comparison(Claim.CONTENT, blocks=True)

_ANY = (False, True)

TABLE: dict[tuple[bool, bool, bool, bool], Comparison] = {
    (checksum_all, difference, newer, checksum): comparison
    for checksum_alls, difference, newer, checksum, comparison in (
        # [mirror] checksum_all, difference mirror, --newer, --checksum
        (_ANY, False, False, False, WHOLE),  # MR-T0
        (_ANY, True, False, False, _WHOLE_IF_DIFFERENT),  # MR-T1
        (_ANY, True, True, False, _WHOLE_IF_NEWER),  # MR-T2
        ((False,), True, False, True, _BLOCKS_IF_DIFFERENT),  # MR-T3
        ((True,), True, False, True, _BLOCKS_OF_ALL),  # MR-T4
        (_ANY, True, True, True, _BLOCKS_IF_NEWER),  # MR-T5
    )
    for checksum_all in checksum_alls
}
"""What is not in it is refused when it is asked for: a full mirror asks nothing about files."""


def comparison_of(*, difference: bool, newer: bool, checksum: bool, checksum_all: bool) -> Comparison:
    """The row of the table. KeyError: a full mirror with options."""
    return TABLE[checksum_all, difference, newer, checksum]
