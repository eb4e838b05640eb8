"""The files next to an index: manifest, metadata, options; checks before they are written."""
