"""Benchmarks: how fast a round runs, alone and beside other simulators."""
