"""Reports for people: a run's progress in the terminal, and one HTML page afterwards."""
