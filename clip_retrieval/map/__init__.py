"""All pictures of an index, laid out by similarity, as one page."""
