"""The benchmark: `python3 dev.py bench [--quick] [scenario ...]`."""
