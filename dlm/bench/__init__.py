"""The speed of training and sampling, compared with the limits of the machine, and quality at that speed."""
