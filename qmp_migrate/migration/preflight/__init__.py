"""Everything that is known before a guest is touched: the facts of hosts, the rules, and the plan made from them."""
