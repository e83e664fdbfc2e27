"""An adapter becomes a GGUF file, and is compared with it."""
