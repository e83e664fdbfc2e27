"""A student for other engines: its GGUF export, and the certificate that every engine agrees."""
