"""A localizer's engine or ONNX file with all that others need to use it without this package."""
