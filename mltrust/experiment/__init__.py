"""Is an experiment valid, and what does it say? Pure functions from states to results."""
