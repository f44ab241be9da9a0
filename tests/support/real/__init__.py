"""Real QEMUs, sshds, brokers, hosts and guests, started for tests."""
