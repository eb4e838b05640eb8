"""The files beside an index: manifest, metadata, options; checks before they are written."""
