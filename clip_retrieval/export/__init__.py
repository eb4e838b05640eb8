"""`export`: vectors, ids and metadata of an index into the engines that people run already, checked at the end."""
