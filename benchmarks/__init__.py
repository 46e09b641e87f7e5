"""What the parts of restmcts cost: `python -m benchmarks [name …]`.

A benchmark is a function without arguments that returns its figures. To add one, write it in a module here and put it
into `BENCHMARKS` in `__main__.py`.
"""
