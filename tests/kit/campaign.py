"""How long the long campaigns are. `SOAK_KILLS=20 make soak` makes a short one of a long one."""

import os


def amount(name: str, usual: int) -> int:
    """The number in the environment variable `SOAK_<name>`; `usual` if there is none."""
    return int(os.environ.get(f"SOAK_{name}", usual))
