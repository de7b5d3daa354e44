"""How fast training and sampling are, against what the machine can do."""
