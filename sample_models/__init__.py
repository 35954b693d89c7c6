"""Networks and small data sets that the demo, the tests and the benchmarks run on."""
