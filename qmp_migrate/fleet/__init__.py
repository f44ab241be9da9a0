"""Many hosts and guests: who is where, and the controller that acts on them."""
