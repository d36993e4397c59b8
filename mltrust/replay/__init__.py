"""Replay: candidates against the past. Scrubbing, perturbing, comparing, and the rules of the gate."""
