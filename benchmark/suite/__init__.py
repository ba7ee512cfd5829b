"""The benchmark suite: real images, several snapshotters, one shaped link. `benchmark/run suite` starts it.

Imports go one way: __main__ -> timeline, profile, scale, scenarios, workloads -> publish -> start -> node -> process, site, and
bars, fleet -> report -> results -> peers. recipes -> images -> site.
"""
