"""The data engine: a model in the loop, people choosing, training data out."""
