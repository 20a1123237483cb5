"""The demo: questions and answers from the documentation that every Python installation has."""
