"""Notifications of what the bus reports: rules, delivery and the service."""
