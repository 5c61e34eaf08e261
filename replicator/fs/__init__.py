"""Capture and exact application: everything that touches a file tree."""
