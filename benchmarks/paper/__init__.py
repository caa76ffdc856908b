"""The paper's experiment as a benchmark: ``python -m benchmarks.paper --help``."""
