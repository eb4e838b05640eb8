"""The embedded demo: a tiny CLIP, a gallery that it can embed, and a run of both."""
