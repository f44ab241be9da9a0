"""One live migration from its first step to its last: the engine, roll-back, recovery, and what is done around them."""
