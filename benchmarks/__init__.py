"""Long experiments. Each is run by hand and commits its results as data, with the machine that made them."""
