"""What is published beside the agents' own messages: migrations, Home Assistant, retention."""
