"""What is done with data before it is trained on: cleaned, split, balanced, selected, compared, reviewed, augmented.

Every act reads files or a recipe's rows, is decided by its settings and its seed alone, writes a new file and never
over an old one, and leaves beside it where its rows come from (`origin`).
"""
