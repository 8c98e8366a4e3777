"""The broker adapters, one file each. Their client libraries are imported there and nowhere else."""
