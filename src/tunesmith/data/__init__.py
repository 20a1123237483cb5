"""The data pipeline: read → detect the row format → split → render → tokenize → pack."""
