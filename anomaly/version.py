"""The version, by itself: what names it in a file needs nothing else of the package."""

__all__ = ["__version__"]

__version__ = "0.1.0"
