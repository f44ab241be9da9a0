"""What migrations and crashed programs leave on hosts: found, classified and removed."""
