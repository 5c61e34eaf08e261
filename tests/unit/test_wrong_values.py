"""Values that are not what they may be: one line that says which, and what it may be."""

import msgspec
import pytest

from replicator.agent.routes.orphans import OrphanSettingsBody
from replicator.agent.wrong_values import in_words
from replicator.cli.client import encoded
from replicator.errors import UsageError
from replicator.orphans import OrphanSettings
from replicator.restores import RestoreRequest


@pytest.mark.parametrize(
    ("type_", "given", "said"),
    [
        (RestoreRequest, {"copy": "1", "orphans": "foo"}, "orphans: 'foo' is none of keep, delete, move"),
        (
            RestoreRequest,
            {"copy": "1", "even_if": ["newer", "foo"]},
            "even_if[1]: 'foo' is none of replicating, waiting, incomplete, not-empty, newer",
        ),
        (OrphanSettings, {"action": "foo"}, "action: 'foo' is none of keep, delete, move"),
        (OrphanSettingsBody, {"limit_count": -1}, "limit_count: expected `int` >= 0"),
        (RestoreRequest, {"copy": "1", "maps": [{"source": "/a"}]}, "maps[0]: object missing required field"),
        (RestoreRequest, {"copy": 1}, "copy: expected `str`, got `int`"),
        (RestoreRequest, {"coppy": "1"}, "request body: Object contains unknown field `coppy`"),
    ],
)
def test_in_words(type_: type[msgspec.Struct], given: object, said: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(given, type_)
    assert in_words(caught.value, type_).startswith(said)


def test_what_is_no_number() -> None:
    assert encoded({"older_than_days": 1.5}) == b'{"older_than_days": 1.5}'
    with pytest.raises(UsageError, match="older_than_days: is not a number"):
        encoded({"older_than_days": float("nan"), "limit": 3})
