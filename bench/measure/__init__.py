"""Measuring: samples, an observer, where the time went, and what the machine did."""
