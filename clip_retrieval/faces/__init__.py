"""Python faces: CLIP under the names of clip.cpp, Clippie and NumPyCLIP; `clip_retrieval.clip` is OpenAI's."""
