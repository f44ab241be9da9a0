"""Fuzzing: everything that reads what somebody else wrote gets a million inputs (`make fuzz`), and may only refuse."""
