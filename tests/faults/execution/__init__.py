"""How cases are run, judged and reported."""
