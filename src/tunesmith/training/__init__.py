"""Training as the user asks for it: one run, or several in a row."""
