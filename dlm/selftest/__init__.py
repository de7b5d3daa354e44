"""Checks of the mathematics against known answers, on any machine."""
