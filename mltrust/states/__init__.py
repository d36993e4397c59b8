"""Mergeable sufficient statistics of units: what a scan leaves behind."""
