"""A HuggingFace model made bidirectional, a tokenizer with a mask, and both on disk."""
