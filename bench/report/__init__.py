"""The report: medians, targets, and the table."""
