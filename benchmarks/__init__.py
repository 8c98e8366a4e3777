"""What the component costs, measured beside a floor and beside its peers: `python -m benchmarks`."""
