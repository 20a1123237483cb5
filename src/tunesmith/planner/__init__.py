"""Memory and time before the fact."""
