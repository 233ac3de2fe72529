"""Everything that runs on a node. Imports the standard library and psutil only.

Modules that talk to Ray or AutoGluon (`ray_task`, `ray_view`, `workload_runtime`) import them inside
functions, because only the node's environment has them.
"""
