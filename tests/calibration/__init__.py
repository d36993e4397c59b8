"""How often each test with a p-value errs in simulated experiments: `python -m tests.calibration`."""
