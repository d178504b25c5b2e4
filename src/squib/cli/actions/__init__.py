"""What several commands do: run a command, boot a VM, copy files, act on each VM."""
