"""The command `pysa`: options in options.py, logic in generate.py, inspect.py and bench.py, drawing in render.py."""
