"""Failure monitoring, addresses and epochs."""
