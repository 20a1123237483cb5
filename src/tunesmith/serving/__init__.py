"""An OpenAI-compatible server over the generation engine."""
