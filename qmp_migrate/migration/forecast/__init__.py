"""How a migration will go: measurements, the simulation of its passes, and the prediction."""
