"""What was measured, as tables, pictures and a page."""
