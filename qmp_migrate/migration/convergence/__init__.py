"""How a migration is made to converge: policies, the ladder of measures, and the estimate that they act upon. Pure."""
