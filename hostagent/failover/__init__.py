"""Two agents finish a hand-over whose controller is gone."""
