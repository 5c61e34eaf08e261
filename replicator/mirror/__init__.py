"""Scan, plan, pieces: the copy of what is already there, ordered with what changes."""
