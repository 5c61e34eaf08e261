"""dtctl and the console: parse, call the control API, render."""
