"""Documents as they are read from files: their text, the blocks in it, and where each part is in its file."""
