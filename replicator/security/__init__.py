"""Who an agent is, whom it trusts, and how a socket becomes a channel that only those two can read.

`docs/developers/protocol.md` ("How a socket is secured") has the steps, `docs/administrators/security.md`
what administrators do about it.
"""
