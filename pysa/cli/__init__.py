"""The command `pysa`: options in options.py, logic in generate.py and inspect.py, drawing in render.py."""
