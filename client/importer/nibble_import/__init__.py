"""Makes Hugging Face model folders, which nibble reads, out of other checkpoints."""
