"""Who owns the guest: the pure decision core, the states that it knows, and the commands that resolve a parked guest."""
