"""The setup of a host: what is wanted, what the machine is like, the steps between, and their execution."""
