"""Search in a directory of documents, and answers that cite them: read → chunk → index → search → answer → cite."""
