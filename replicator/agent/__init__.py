"""Processes of a host: dtd, sender, receiver, their supervision and the control API."""
