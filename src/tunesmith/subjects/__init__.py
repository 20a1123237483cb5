"""Models that answer chats: one that this process loads, one behind a URL, and a model as a judge of answers."""
