"""Models to other formats: ONNX graphs built from a checkpoint or traced by torch, and folders of weights."""
