"""What the child processes of an agent have in common."""
