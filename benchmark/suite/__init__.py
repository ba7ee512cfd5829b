"""The benchmark suite: real images, several snapshotters, one shaped link. `benchmark/run suite` starts it.

Imports go one way: __main__ -> scenarios, scale, workloads -> start -> peers -> node -> process -> site, and
__main__ -> report, bars, timeline -> results. `fleet` stands alone.
"""
