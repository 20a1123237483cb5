"""The demonstration: questions and answers that every Python installation brings along."""
