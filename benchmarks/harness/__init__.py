"""What the benchmarks share: a server, the measuring, the machine, the tables."""
