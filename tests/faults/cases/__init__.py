"""What can go wrong: phases, faults, and all cases as data."""
