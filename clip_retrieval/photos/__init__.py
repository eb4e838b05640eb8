"""One command over a folder of pictures: embed what changed, then answer."""
