"""OpenAI's `clip`: the same names, arguments and shapes, for every model, with torch or without it.

from clip_retrieval import clip

model, preprocess = clip.load("ViT-B/32")
image = preprocess(Image.open("cat.jpg")).unsqueeze(0)
logits_per_image, logits_per_text = model(image, clip.tokenize(["a cat", "a dog"]))

A tensor gives a tensor. Anything else gives NumPy arrays with the methods of a tensor that such programs call, and
torch is not imported.
"""

from __future__ import annotations

from clip_retrieval.faces.arrays import Array
from clip_retrieval.faces.model import Clip
from clip_retrieval.faces.openai import available_models, load, tokenize
from clip_retrieval.faces.pictures import ImagePreprocess
from clip_retrieval.faces.texts import TooManyTokensError

__all__ = ["Array", "Clip", "ImagePreprocess", "TooManyTokensError", "available_models", "load", "tokenize"]
