"""The embedded demo: a tiny CLIP, a gallery that it can embed, and the run that shows both."""
