"""What several commands do.

They run a command, boot a VM, copy files, or act on each VM.
"""
