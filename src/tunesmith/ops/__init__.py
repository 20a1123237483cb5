"""The operations that take most of the time and memory, each with a plain reference beside the fast version."""
