"""One file, one job: read, reduce, infer, write, exit."""
