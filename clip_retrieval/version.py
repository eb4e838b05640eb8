"""The version of the package, in a file that imports nothing: any part may name it."""

__version__ = "3.0.0.dev0"
