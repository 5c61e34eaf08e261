"""What serves one mount: the process behind a file system, and what its successor needs."""
