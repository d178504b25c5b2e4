"""What several commands share: run a command, boot a VM, copy files."""
