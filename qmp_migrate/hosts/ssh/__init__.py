"""A host that is reached over SSH, with paramiko."""
