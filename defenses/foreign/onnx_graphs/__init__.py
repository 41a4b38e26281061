"""ONNX graphs: read, rewritten and converted to torch."""
