"""What programs and model APIs write, in the form of the chat protocol."""
