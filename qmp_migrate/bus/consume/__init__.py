"""What a subscriber makes of messages: their order, their age, and names that are used twice."""
