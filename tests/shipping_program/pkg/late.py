"""Imported inside a function only."""
VALUE = 5
