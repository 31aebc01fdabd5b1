"""Run configurations: each file is one page with what it reproduces, the number to expect, the time and the command."""
