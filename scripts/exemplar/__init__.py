"""How `exemplar`'s head is made and judged: sources of objects, scenes, training, the benchmark.

Nothing here runs in the service. It imports `worker.models`, torch and PIL, and needs the extra
``mayfly[train]``.
"""
