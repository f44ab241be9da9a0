"""What was recorded or written down: command lines, messages, replies, specs."""
