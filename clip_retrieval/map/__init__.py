"""All pictures of an index laid out by likeness, as one page."""
