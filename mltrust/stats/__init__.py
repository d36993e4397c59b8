"""Inference on states: pure functions from counts and moments to results."""
