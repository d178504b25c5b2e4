"""The arguments that commands share: flags, and how their values are parsed."""
