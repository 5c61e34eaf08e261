"""Sessions between agents: frames, protocol engine, heartbeats. Knows no file system."""
