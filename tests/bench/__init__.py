"""Benchmarks, side by side in one run: `python -m tests.bench`."""

#: For sessions that are to run at full speed rather than to start fast.
AT_LENGTH = {"spark.driver.extraJavaOptions": "-XX:+UseG1GC"}
