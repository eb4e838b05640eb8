"""An index opened for search."""
