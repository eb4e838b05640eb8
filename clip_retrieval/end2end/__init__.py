"""`end2end`: from urls, tables or a folder to an index that is served, with one command."""
