"""The guardian: takes a guest back from a controller that is gone."""
