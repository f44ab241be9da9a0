"""Fake QEMUs, hosts and controllers, and what runs the product's own code against them."""
