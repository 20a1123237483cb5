"""The few operations where the time and memory go; a plain reference beside each fast version."""
