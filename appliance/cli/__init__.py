"""The command line: one small file per command noun, and the only user of click and rich.

Each module of a command defines `command`, a click command; main.py finds it by the module's name.
"""
