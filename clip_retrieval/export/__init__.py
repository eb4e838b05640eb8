"""`export`: vectors, ids and metadata of an index into engines that users already run, checked at the end."""
