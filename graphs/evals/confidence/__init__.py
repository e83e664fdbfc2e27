"""How sure systems are, whether that is so, and what it saves to ask another where they are not."""
