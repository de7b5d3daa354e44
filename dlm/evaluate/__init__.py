"""Documents in, a report out."""
