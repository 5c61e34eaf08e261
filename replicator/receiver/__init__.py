"""What keeps one copy: takes a stream in, and applies it in order."""
