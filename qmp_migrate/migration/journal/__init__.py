"""The journal of migrations and file operations: schema, storage and the operations recorded in it."""
