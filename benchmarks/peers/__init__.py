"""Other people's components, each as its own documentation shows it, over a queue per client where it has
no channels of its own. Each module has an `app` with the two paths that `benchmarks/app.py` has.
"""
