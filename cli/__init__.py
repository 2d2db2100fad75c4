"""The command line: one file a command; turns errors into one line and an exit code. No logic."""
