"""A stub Firecracker and a stub jailer: programs that behave towards squib as the real ones do.

`install.install` writes both programs into a folder, together with the file of settings that decides how they behave.
The programs themselves need only the standard library, so that they start fast. See `program` for the VMM and `jailer`
for the jailer.
"""
