"""Fine-tuning a quantized network against its float teacher (spec/fdda.md, "Fine-tuning the quantized network")."""
