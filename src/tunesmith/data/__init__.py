"""The way of one example: read → form → split → render → tokenize → pack."""
