"""What is measured on this host: load, dirty rates, facts of the host, Prometheus metrics."""
