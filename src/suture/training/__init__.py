"""One loop: losses in, checkpoint out; exact resume, float32 masters, full weights or LoRA."""
