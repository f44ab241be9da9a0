"""What other systems read: Home Assistant and Prometheus."""
