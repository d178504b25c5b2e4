"""The command line. One command is one file in `commands`."""
