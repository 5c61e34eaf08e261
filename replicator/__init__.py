"""File-level real-time replication agent. `docs/developers/architecture.md` is the map."""

__version__ = "0.1.0"
