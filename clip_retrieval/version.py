"""The version of the package, in a file that imports nothing: any module may import it."""

__version__ = "3.0.0.dev0"
