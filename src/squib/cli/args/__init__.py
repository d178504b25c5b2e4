"""The flags that commands share, and how their values are parsed."""
