"""Benchmarks of quarterarc, run from a clone of the repository: `python -m benchmarks --help`.

They need the packages that quarterarc is compared with: `pip install -e '.[dev]'`.
"""
