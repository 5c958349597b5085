"""What runs: loops over tasks, and the micro-kernels they call. Nothing here knows of specs or plans."""
