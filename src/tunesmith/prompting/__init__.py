"""System prompts and few-shot examples: as files, before any model's chats, and searched for."""
