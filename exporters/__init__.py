"""torch -> ONNX, parity with the source, Q/DQ insertion."""
